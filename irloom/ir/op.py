"""``@op``: one decorated function is one op, and nothing about the op lives anywhere else.

The *signature* gives shape inference, the sharding rule and the cost; the *body* gives the reference
semantics in torch; the *parameters* give operands (positional) and attributes (keyword-only); the *docstring*
is the documentation. Hooks hold only what a signature cannot say.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Protocol, cast

from .dims import Dim, Sym
from .elem import AnyElem, Elem, Quant
from .errors import IRError
from .plugins import Group, Unfit
from .signature import Binding, Operand, Signature, bind, parse_signature
from .types import Type

Attr = int | float | bool | str | None | Sym | Elem | Quant | tuple["Attr", ...]
Attrs = Mapping[str, Attr]
_EMPTY = inspect.Parameter.empty


class Emitter(Protocol):
    """What an op call talks to: a function under construction, or a pattern."""

    def emit(self, op: Op, args: Sequence[Any], attrs: dict[str, Any]) -> Any:
        """Record the application of ``op`` and return what stands for its results."""
        ...


_EMITTER: ContextVar[Emitter | None] = ContextVar("irloom_emitter", default=None)


@contextmanager
def emitting(to: Emitter) -> Generator[None]:
    """Inside the block, calling an op records it in ``to`` instead of running it."""
    token = _EMITTER.set(to)
    try:
        yield
    finally:
        _EMITTER.reset(token)


@dataclass(frozen=True, eq=False)
class Op:
    """An op: see the module's docstring. ``attrs`` maps each attribute to its default (or to "required").

    A ``commutative`` op means the same with its first two operands exchanged. A recurrent op has a
    ``carried`` twin, which reads and renews states (see ``recurrent``).
    """

    name: str
    doc: str
    signature: Signature
    operands: tuple[str, ...]
    variadic: bool
    attrs: dict[str, Any]
    reference: Callable[..., Any]
    place: str
    commutative: bool = False
    carried: Op | None = None
    hooks: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        """Emit into the current function or pattern; outside of both, run the reference body on tensors."""
        emitter = _EMITTER.get()
        return self.reference(*args, **attrs) if emitter is None else emitter.emit(self, args, attrs)

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.signature.text}>"

    def _hook(self, kind: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        if kind in self.hooks:
            raise IRError(f"op {self.name}: hook `.{kind}` is already set")
        self.hooks[kind] = fn
        return fn

    def verify(self, fn: Callable[[Sequence[Any], Attrs], None]) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)``, which raises ``IRError`` for what a signature cannot forbid."""
        return self._hook("verify", fn)

    def dtype(
        self, fn: Callable[[Sequence[Any], Attrs], AnyElem | tuple[AnyElem, ...]]
    ) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)`` giving the result's element; the default is the first operand's."""
        return self._hook("dtype", fn)

    def shape(self, fn: Callable[[Sequence[Any], Attrs], Type | tuple[Type, ...]]) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)`` giving the result types, for ops whose dims depend on attributes."""
        return self._hook("shape", fn)

    def sizes(self, fn: Callable[[Sequence[Any], Attrs], Mapping[str, Dim]]) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)`` giving dims of the signature that follow from no operand's dims."""
        return self._hook("sizes", fn)

    def state(self, fn: Callable[[Sequence[Any], Attrs], Type]) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)`` giving a recurrent op's state of one sequence, ``f32[heads, k, v]``."""
        return self._hook("state", fn)

    def bytes(self, fn: Callable[[Sequence[Any], Attrs], Dim]) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)`` giving the bytes moved; by default every operand and result once."""
        return self._hook("bytes", fn)

    def flops(self, fn: Callable[[Sequence[Any], Attrs], Dim]) -> Callable[..., Any]:
        """Attach ``fn(types, attrs)`` giving the FLOPs; the default follows from the signature."""
        return self._hook("flops", fn)

    def complete(self, attrs: Mapping[str, Any]) -> dict[str, Attr]:
        """``attrs`` with the defaults filled in, in the order of the definition."""
        if extra := sorted(set(attrs) - set(self.attrs)):
            near = get_close_matches(extra[0], self.attrs, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.attrs) or 'none'}"
            raise IRError(f"{self.name}: no attribute {extra[0]!r}", hint=hint)
        full = {k: attrs.get(k, default) for k, default in self.attrs.items()}
        if missing := [k for k, v in full.items() if v is _EMPTY]:
            raise IRError(f"{self.name}: attribute `{missing[0]}` is missing", hint="it has no default")
        return full

    def infer(self, operands: Sequence[Operand], attrs: Attrs) -> tuple[Type, ...]:
        """Types of the results, or ``IRError`` naming the operand and the dim that do not fit."""
        if not self.variadic and len(operands) > len(self.operands):
            raise IRError(f"{self.name}: {len(operands)} operands given, it takes {', '.join(self.operands)}")
        if verify := self.hooks.get("verify"):
            verify(operands, attrs)
        if shape := self.hooks.get("shape"):
            self._refuse_partial(operands)
            return _tupled(shape(operands, attrs), 1)
        b = self.bind(operands, attrs)
        elems = self._elems(operands, attrs)
        return tuple(b.result(term, elem) for term, elem in zip(self.signature.outs, elems, strict=True))

    def bind(self, operands: Sequence[Operand], attrs: Attrs) -> Binding:
        """What each name of the signature stands for here."""
        given = [*operands, *[None] * (len(self.operands) - len(operands))]
        if hook := self.hooks.get("sizes"):
            attrs = {**attrs, **hook(given, attrs)}
        return bind(self.name, self.signature, self.operands, given, attrs)

    def count_flops(self, operands: Sequence[Operand], attrs: Attrs) -> Dim:
        """Floating-point operations: two per multiply-add where the signature sums, else one per entry.

        Ops that move entries, by attributes or by index, have none.
        """
        if hook := self.hooks.get("flops"):
            return hook(operands, attrs)
        if "shape" in self.hooks or self.signature.indexed:
            return 0
        return self.bind(operands, attrs).volume() * (2 if self.signature.summed else 1)

    def count_bytes(self, operands: Sequence[Operand], attrs: Attrs) -> Dim:
        """Bytes read and written when every operand and result moves once."""
        if hook := self.hooks.get("bytes"):
            return hook(operands, attrs)
        types = [t for t in operands if isinstance(t, Type)]
        return sum((t.nbytes for t in (*types, *self.infer(operands, attrs))), 0)

    def _elems(self, operands: Sequence[Operand], attrs: Attrs) -> tuple[AnyElem, ...]:
        outs = len(self.signature.outs)
        if hook := self.hooks.get("dtype"):
            return _tupled(hook(operands, attrs), outs)
        first = next((t.elem for t in operands if isinstance(t, Type)), None)
        if first is None:
            raise IRError(
                f"{self.name}: no operand is a tensor", hint="its element has nothing to follow from"
            )
        return (first,) * outs

    def _refuse_partial(self, operands: Sequence[Operand]) -> None:
        for t in operands:
            if isinstance(t, Type) and t.partial:
                raise IRError(
                    f"{self.name}: an operand is {t}, a sum still split over `{t.partial}`",
                    hint=f"all_reduce(axis={t.partial!r}) it first",
                )


def _tupled(x: Any, times: int) -> tuple[Any, ...]:
    """What a hook gives: a tuple, or one thing that stands for ``times`` results."""
    return cast("tuple[Any, ...]", x) if isinstance(x, tuple) else (x,) * times


def _accepted(found: object) -> object:
    """What an entry point names: loading it has defined its ops."""
    if not isinstance(found, Op | ModuleType):
        raise Unfit(f"a {type(found).__name__}: it has to name an op, or a module of ops")
    return found


class Registry:
    """Ops by name. There is one, ``OPS``; defining a name twice is an error that gives both places.

    An installed package offers an op, or a module of ops, as an entry point of the group ``irloom.ops``.
    """

    def __init__(self) -> None:
        self._ops: dict[str, Op] = {}
        self.packages: Group[object] = Group("irloom.ops", "op", IRError, _accepted)

    def add(self, new: Op) -> None:
        """Register ``new``."""
        if old := self._ops.get(new.name):
            raise IRError(f"op {new.name!r} is defined twice: in {old.place} and in {new.place}")
        self._ops[new.name] = new

    def __getitem__(self, name: str) -> Op:
        found = self.find(name)
        if found is None:
            near = get_close_matches(name, [*self._ops, *self.packages], 1)
            raise IRError(
                f"unknown op {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else "`irloom op` lists them",
            )
        return found

    def find(self, name: str) -> Op | None:
        """The op called ``name``, if any: where none is known, packages that offer ops are loaded."""
        if name not in self._ops:
            self.packages.load(name) if name in self.packages else self.packages.every()
        return self._ops.get(name)

    def __contains__(self, name: str) -> bool:
        """Whether such an op is defined by now, be it in a package or not."""
        return name in self._ops

    def __iter__(self) -> Iterator[Op]:
        """The ops that are defined by now; ``packages.every()`` loads those that packages offer."""
        return iter(self._ops.values())


OPS = Registry()


def op(signature: str, *, commutative: bool = False) -> Callable[[Callable[..., Any]], Op]:
    """Define an op from its signature and its body."""

    def wrap(fn: Callable[..., Any]) -> Op:
        params = list(inspect.signature(fn).parameters.values())
        code = fn.__code__
        new = Op(
            name=fn.__name__.removesuffix("_"),
            doc=inspect.getdoc(fn) or "",
            signature=parse_signature(signature),
            operands=tuple(p.name for p in params if p.kind is not p.KEYWORD_ONLY),
            variadic=any(p.kind is p.VAR_POSITIONAL for p in params),
            attrs={p.name: p.default for p in params if p.kind is p.KEYWORD_ONLY},
            reference=fn,
            place=f"{code.co_filename}:{code.co_firstlineno}",
            commutative=commutative,
        )
        if not new.doc:
            raise IRError(f"op {new.name!r} has no docstring ({new.place})")
        if not new.variadic and len(new.signature.ins) != len(new.operands):
            raise IRError(
                f"op {new.name!r} has {len(new.operands)} operands, its signature {len(new.signature.ins)}"
            )
        OPS.add(new)
        return new

    return wrap
