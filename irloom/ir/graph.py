"""Modules, functions and the three kinds of statement: a node, a call of a function, a loop over layers.

A function is a list of statements in order, in SSA form. Repeated layers are one function that ``main`` calls
with a layer index; its weights are parameters whose binding names a tensor with ``{i}`` for that index.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .dims import Dim
from .elem import Quant
from .errors import IRError
from .names import take_name
from .op import Attr, Op, emitting
from .signature import Literal, Operand
from .types import Type

if TYPE_CHECKING:
    import torch

    from .cost import Plan
    from .weight_expr import WeightExpr


@dataclass(eq=False)
class Value:
    """One SSA value. ``buffer`` names the memory it lives in once ``plan-memory`` has run."""

    name: str
    type: Type
    buffer: str | None = None

    def __repr__(self) -> str:
        return f"{self.name}: {self.type}"


@dataclass(eq=False, repr=False)
class Param(Value):
    """A parameter of a function. With a ``weight`` it is bound by the function itself, not by its callers."""

    weight: WeightExpr | None = None


Arg = Value | Literal | None


@dataclass(frozen=True)
class Index:
    """A layer index: a constant, or a loop variable, so many times, plus an offset."""

    var: str | None
    offset: int
    times: int = 1

    def at(self, env: dict[str, int]) -> int:
        """Its value when the loop variables are as in ``env``."""
        return self.offset + (env[self.var] * self.times if self.var else 0)

    def __str__(self) -> str:
        if self.var is None:
            return str(self.offset)
        var = self.var if self.times == 1 else f"{self.times}*{self.var}"
        return f"{var} + {self.offset}" if self.offset else var


@dataclass(frozen=True)
class Slot:
    """One entry of a stack of caches: ``kv[i + 1]``. A call reads it and puts the next cache in its place."""

    stack: Value
    index: Index

    def __str__(self) -> str:
        return f"{self.stack.name}[{self.index}]"


_MAKER: ContextVar[str] = ContextVar("irloom_maker", default="")


@contextmanager
def making(maker: str) -> Generator[None]:
    """Inside the block, new nodes are made by ``maker``."""
    token = _MAKER.set(maker)
    try:
        yield
    finally:
        _MAKER.reset(token)


@dataclass(eq=False)
class Node:
    """One op application. ``loc`` is its source: module path, then file and line of the source model.

    ``made_by`` is the pass that put it there, and empty for the frontend. It is no part of the text, nor of
    equality. Who copies a node hands it on.
    """

    op: Op
    args: list[Arg]
    attrs: dict[str, Attr]
    results: list[Value]
    loc: str = ""
    made_by: str = field(default_factory=_MAKER.get)

    @property
    def values(self) -> list[Value]:
        """The operands that are values."""
        return [a for a in self.args if isinstance(a, Value)]

    @property
    def result(self) -> Value:
        """The one result."""
        (only,) = self.results
        return only

    @property
    def operands(self) -> list[Operand]:
        """Operand types, with literals and absences as they are."""
        return [a.type if isinstance(a, Value) else a for a in self.args]


@dataclass(eq=False)
class Call:
    """``x, kv[i] = layer[i](x, seqs, kv[i], kv[3])``: an application of a function.

    Behind its other operands come ``slots``, the caches that it renews, then ``reads``, those that an earlier
    call has renewed in this step and that it only reads.
    """

    callee: str
    index: Index | None
    args: list[Value]
    slots: list[Slot]
    results: list[Value]
    loc: str = ""
    reads: list[Slot] = field(default_factory=list[Slot])

    @property
    def values(self) -> list[Value]:
        """The operands, and the stacks whose slots it uses."""
        return [*self.args, *(s.stack for s in (*self.slots, *self.reads))]


@dataclass(eq=False)
class Loop:
    """``for var in range(start, stop, step)`` over calls.

    ``inits`` enter as ``params``; ``yields`` leave as ``results``. The four lists run in parallel, one entry
    per carried value; in the text all four bear one name.
    """

    var: str
    start: int
    stop: int
    step: int
    inits: list[Value]
    params: list[Value]
    body: list[Stmt]
    yields: list[Value]
    results: list[Value]

    @property
    def values(self) -> list[Value]:
        """What the loop reads from outside."""
        inside = {*self.params, *(r for s in self.body for r in s.results)}
        free = [v for vs in (*(s.values for s in self.body), self.yields) for v in vs if v not in inside]
        return [*self.inits, *dict.fromkeys(free)]

    @property
    def indices(self) -> range:
        """The values of the loop variable."""
        return range(self.start, self.stop, self.step)


Stmt = Node | Call | Loop


@dataclass(eq=False)
class Func:
    """A function: parameters, statements, returned values."""

    name: str
    params: list[Param] = field(default_factory=list[Param])
    body: list[Stmt] = field(default_factory=list[Stmt])
    returns: list[Value] = field(default_factory=list[Value])

    def __str__(self) -> str:
        from .show import show_func

        return show_func(self)

    @property
    def data(self) -> list[Param]:
        """Parameters that callers give."""
        return [p for p in self.params if p.weight is None]

    @property
    def weights(self) -> list[Param]:
        """Parameters bound to weights."""
        return [p for p in self.params if p.weight is not None]

    @property
    def nodes(self) -> list[Node]:
        """The op applications among the statements."""
        return [s for s in self.body if isinstance(s, Node)]

    def param(self, name: str) -> Param:
        """The parameter called ``name``."""
        for p in self.params:
            if p.name == name:
                return p
        raise IRError(
            f"function {self.name!r} has no parameter {name!r}",
            hint=f"it has {', '.join(p.name for p in self.params)}",
        )

    def producers(self) -> dict[Value, Stmt]:
        """Which statement makes each value."""
        return {r: s for s in self.body for r in s.results}

    def readers(self) -> dict[Value, list[Stmt]]:
        """Which statements read each value, one entry per read; a return is no read (see ``returns``)."""
        out: dict[Value, list[Stmt]] = {}
        for s in self.body:
            for v in s.values:
                out.setdefault(v, []).append(s)
        return out

    def names(self) -> set[str]:
        """Every value name in use."""
        return {v.name for v in (*self.params, *(r for s in self.body for r in s.results))}

    def replace_uses(self, swap: dict[Value, Value]) -> None:
        """Let every reader of a key read its value instead (chains are followed)."""

        def follow(a: Any) -> Any:
            while isinstance(a, Value) and a in swap:
                a = swap[a]
            return a

        for s in self.body:
            substitute(s, follow)
        self.returns = [follow(r) for r in self.returns]


def substitute(s: Stmt, follow: Any) -> None:
    """Let ``s`` read ``follow(v)`` where it reads ``v``."""
    match s:
        case Node():
            s.args = [follow(a) for a in s.args]
        case Call():
            s.args = [follow(a) for a in s.args]
            s.slots = [Slot(follow(x.stack), x.index) for x in s.slots]
            s.reads = [Slot(follow(x.stack), x.index) for x in s.reads]
        case Loop():
            s.inits = [follow(a) for a in s.inits]
            s.yields = [follow(a) for a in s.yields]
            for inner in s.body:
                substitute(inner, follow)


@dataclass(eq=False)
class Module:
    """A program: its functions (``main`` is the entry) and the header that declares what their types name.

    ``dims`` gives each symbol its range (both ends included), ``mesh`` each axis its size, ``quants`` each
    quantized element its scheme, ``buffers`` each buffer of the memory plan its bytes, ``consts`` small
    tensors that no checkpoint holds (rotary frequencies), ``passes`` what ran.
    """

    funcs: dict[str, Func]
    model: str = ""
    passes: list[str] = field(default_factory=list[str])
    dims: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    mesh: dict[str, int] = field(default_factory=dict[str, int])
    quants: dict[str, Quant] = field(default_factory=dict[str, Quant])
    buffers: dict[str, Dim] = field(default_factory=dict[str, Dim])
    consts: dict[str, torch.Tensor] = field(default_factory=dict[str, "torch.Tensor"])

    @property
    def main(self) -> Func:
        """The entry; ``IRError`` where the program has none."""
        if "main" not in self.funcs:
            there = ", ".join(self.funcs) or "nothing"
            raise IRError(f"the program has no function `main`, only {there}", hint="main is what runs")
        return self.funcs["main"]

    def calls(self) -> Iterator[tuple[Call, int | None, list[int]]]:
        """Every call of ``main`` as it runs: the call, its layer index, the index of each of its slots."""
        for c, env in self.runs():
            yield c, c.index.at(env) if c.index else None, [x.index.at(env) for x in c.slots]

    def runs(self) -> Iterator[tuple[Call, dict[str, int]]]:
        """Every call of ``main`` as it runs, and what loop variables are then."""
        for s in self.main.body if "main" in self.funcs else ():
            if isinstance(s, Call):
                yield s, {}
            elif isinstance(s, Loop):
                for i in s.indices:
                    yield from ((c, {s.var: i}) for c in s.body if isinstance(c, Call))

    def copy(self) -> Module:
        """An independent copy; constants and weight bindings are immutable and shared."""
        from .copy import copy_module

        return copy_module(self)

    def __eq__(self, other: object) -> bool:
        """Structural: names, types, bindings, statements, header and constants are the same."""
        from .copy import same

        return isinstance(other, Module) and same(self, other)

    __hash__ = object.__hash__

    def __str__(self) -> str:
        from .show import show

        return show(self)

    __repr__ = __str__

    def plan(self) -> Plan:
        """What the program needs, from its text alone: weights, caches, what a step costs."""
        from .cost import plan

        return plan(self)

    def to_networkx(self, func: str = "main") -> Any:
        """A function as a ``networkx.MultiDiGraph``: a vertex per parameter and statement, an edge a read."""
        from .copy import to_networkx

        return to_networkx(self.funcs[func])


class Builder:
    """Appends to a function; inside ``with builder(func) as b:`` calling an op emits a node here.

    >>> from irloom.ir.ops import silu
    >>> from irloom.ir.elem import ELEMS
    >>> f = Func("f", [Param("x", Type(ELEMS["f32"], (4, 8)))])
    >>> with Builder(f): y = silu(f.params[0])
    >>> y
    silu: f32[4, 8]
    """

    def __init__(
        self, func: Func, into: list[Stmt] | None = None, loc: str = "", taken: set[str] | None = None
    ) -> None:
        self.func, self.body, self.loc = func, func.body if into is None else into, loc
        self.taken = func.names() if taken is None else taken
        self.name: str | None = None

    def fresh(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2``, ... when it is taken; taken from now on."""
        return take_name(base, self.taken)

    def emit(self, op: Op, args: Sequence[Any], attrs: dict[str, Any]) -> Any:
        """Append ``op(*args, **attrs)``; its value, or a tuple of them where the op has several results."""
        while args and args[-1] is None:
            args = args[:-1]
        full = op.complete(attrs)
        for name, given in full.items():
            if isinstance(given, Value):
                hint = f"in a pattern, `{name}: Literal` takes numbers alone"
                raise IRError(f"{op.name}: attribute `{name}` is the value {given.name}", hint=hint)
        types = op.infer([a.type if isinstance(a, Value) else a for a in args], full)
        base, self.name = self.name or op.name, None
        results = [Value(self.fresh(base), t) for t in types]
        self.body.append(Node(op, list(args), full, results, self.loc))
        return results[0] if len(results) == 1 else tuple(results)

    def __enter__(self) -> Builder:
        self._block = emitting(self)
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)


def retype(func: Func) -> None:
    """Derive every node's result types again, in place, from the types of the parameters."""
    for s in func.body:
        if isinstance(s, Node):
            for value, t in zip(s.results, s.op.infer(s.operands, s.attrs), strict=True):
                value.type = t
