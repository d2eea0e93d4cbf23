"""What to try an op on: operand types that fit its signature, a random size for every dim, and attributes."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from irloom.ir.dims import Dim, sym
from irloom.ir.elem import ELEMS
from irloom.ir.errors import IRError
from irloom.ir.op import Attr, Op
from irloom.ir.parse import parse
from irloom.ir.plugins import line_of, told
from irloom.ir.show import show_attr
from irloom.ir.signature import Axis, Operand, Signature
from irloom.ir.types import Type

T = sym("T")
SIZES = (2, 3, 4, 5, 6, 8)
"""Of dims: small, mostly different from each other, and some that others divide."""


class CannotTry(IRError):
    """An op whose signature does not say what to try it on."""


class BrokenHook(IRError):
    """A hook of an op that raised something which is no refusal."""


@dataclass(frozen=True)
class Trial:
    """One application of an op: operands as types, numbers or None, and all of its attributes."""

    op: Op
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Attr]

    def __str__(self) -> str:
        given = [*map(str, self.operands), *(f"{k}={show_attr(v)}" for k, v in self.attrs.items())]
        return f"{self.op.name}({', '.join(given)})"


def written(op: Op, operands: Sequence[Any], attrs: Mapping[str, Any]) -> Iterator[Trial]:
    """Trials as somebody wrote them: types as text, and a list where an attribute has several values."""
    types = tuple(read(x) if isinstance(x, str) else x for x in operands)
    choices = [v if isinstance(v, list) else [v] for v in attrs.values()]
    for values in itertools.product(*choices):
        yield Trial(op, types, op.complete({k: _symbolic(v) for k, v in zip(attrs, values, strict=True)}))


def read(text: str) -> Type:
    """A type, as it is written in a program."""
    return parse(f"def main(x: {text}):\n    return x\n").main.params[0].type


def _symbolic(v: Any) -> Any:
    """``"T"`` as the symbol; other text is text."""
    if isinstance(v, tuple):
        return tuple(_symbolic(x) for x in v)
    return read(f"f32[{v}]").dims[0] if isinstance(v, str) and v.isupper() and len(v) == 1 else v


def inferred(trial: Trial) -> tuple[Type, ...]:
    """The types of the results; ``BrokenHook`` where a hook raises something else than ``IRError``."""
    try:
        return trial.op.infer(trial.operands, trial.attrs)
    except IRError:
        raise
    except Exception as error:
        made = BrokenHook(f"{trial.op.name}: a hook raised {told(error)}", hint="it may raise IRError")
        raise made.at(f"in {trial}").at(f"at {line_of(error) or trial.op.place}") from error


@dataclass(frozen=True)
class Draw:
    """Random trials of an op that fit its signature and its hooks, the same ones every time.

    ``attrs`` are taken as given, one of each list; ``elems`` says which operands are not of floats. The first
    trial has all optional operands, the second none. Floats are f32, and with ``anywhere`` also bf16; then
    tokens need not be the first dim, and what broadcasts may.
    """

    op: Op
    attrs: Mapping[str, Any]
    elems: Mapping[str, str]
    sizes: Sequence[int] = SIZES
    anywhere: bool = True

    def trials(self, count: int) -> Iterator[Trial]:
        """``count`` of them; ``CannotTry`` when none fits, or the signature does not say enough."""
        if why := self._unsaid():
            hint = f'give operands: check_op({self.op.name}, "f32[T, 8]", ...)'
            raise CannotTry(f"{self.op.name}: {why}, so nothing says what to try", hint=hint)
        random, made, refused = Random(self.op.name), 0, None
        for at in range(50 * count):
            trial = self._trial(random, at)
            try:
                inferred(trial)
            except BrokenHook:
                raise
            except IRError as error:
                refused = error
                continue
            yield trial
            made += 1
            if made == count:
                return
        if not made:
            why = refused.message if refused else "none was tried"
            raise CannotTry(f"{self.op.name}: no operands were found that it takes: {why}", hint="give some")

    @cached_property
    def factors(self) -> dict[str, None]:
        """The dims of the signature, by name."""
        terms = (*self.op.signature.ins, *self.op.signature.outs)
        return dict.fromkeys(f for t in terms for a in t.axes or () for f in a.factors)

    def _unsaid(self) -> str | None:
        sig = self.op.signature
        if self.op.variadic or any(t.axes is None for t in (*sig.ins, *sig.outs)):
            return "its signature leaves dims to hooks"
        if sig.indexed and not self.elems:
            return "one of its operands holds indices"
        for name, default in self.op.attrs.items():
            given = name in self.factors or name in self.attrs or _kind(self.op, name) in ("float", "bool")
            if default is inspect.Parameter.empty and not given:
                return f"attribute `{name}` has no default"
        return None

    def _trial(self, random: Random, at: int) -> Trial:
        op, sig = self.op, self.op.signature
        fixed = {k: random.choice(v) if isinstance(v, list) else v for k, v in self.attrs.items()}
        size: dict[str, int] = {f: self._size(random, f, fixed) for f in self.factors}
        lead = {f: self._lead(random) if at else (T,) for f in self.factors}
        float_ = "bf16" if self.anywhere and at % 3 == 2 else "f32"
        operands: list[Operand] = []
        for name, term in zip(op.operands, sig.ins, strict=True):
            dims = tuple(d for a in term.axes or () for d in _dims(a, size, lead))
            if self.anywhere and at and any(a.broadcast for a in term.axes or ()):
                dims = _broadcast(dims, random)
            absent = term.optional and (at == 1 or (at > 1 and random.random() < 0.5))
            operands.append(None if absent else Type(ELEMS[self.elems.get(name, float_)], dims))
        attrs = {k: size[k] if k in self.factors else _attribute(op, k, random) for k in op.attrs}
        return Trial(op, tuple(operands), op.complete({**attrs, **fixed}))

    def _size(self, random: Random, factor: str, fixed: Mapping[str, Any]) -> int:
        """Of a dim; one that is indexed has the places that ``values`` makes indices of."""
        given = fixed.get(factor)
        least = 4 if factor in self.op.signature.indexed else 1
        return given if isinstance(given, int) else random.choice([n for n in self.sizes if n >= least])

    def _lead(self, random: Random) -> tuple[Dim, ...]:
        n = random.choice(self.sizes)
        return random.choice([(T,), (T, n), *([(n, T)] if self.anywhere else [])])


def _dims(a: Axis, size: Mapping[str, int], lead: Mapping[str, tuple[Dim, ...]]) -> tuple[Dim, ...]:
    return lead[a.factors[0]] if a.variadic else (math.prod(size[f] for f in a.factors),)


def _broadcast(dims: tuple[Dim, ...], random: Random) -> tuple[Dim, ...]:
    """Some dims as 1, or without the first ones."""
    some = tuple(1 if random.random() < 0.3 else d for d in dims)
    return some[random.choice([0, 0, len(dims) - 1]) :]


def _kind(op: Op, name: str) -> str:
    """``float``, ``bool``, ... as the body says it; may be ``float | None``."""
    p = inspect.signature(op.reference).parameters.get(name)
    if p is None or p.annotation is inspect.Parameter.empty:
        return type(op.attrs[name]).__name__
    return inspect.formatannotation(p.annotation).strip("'\"")


def _attribute(op: Op, name: str, random: Random) -> Any:
    """A value: both of a truth value, a number or none where either may be; else the default."""
    default, kind = op.attrs[name], _kind(op, name)
    required = default is inspect.Parameter.empty
    if kind == "bool":
        return random.random() < 0.5
    if kind == "float" and required:
        return round(random.uniform(0.5, 2.0), 2)
    if kind == "float | None" and (required or default is None):
        return random.choice([None, round(random.uniform(0.5, 2.0), 2)])
    return default


def free_rows(sig: Signature) -> str | None:
    """The name of leading dims that an op says are free: any number of them, first wherever they stand."""
    first = {t.axes[0].factors[0] if t.axes and t.axes[0].variadic else None for t in sig.outs}
    later = {f for t in (*sig.ins, *sig.outs) for a in (t.axes or ())[1:] for f in a.factors}
    name = first.pop() if len(first) == 1 else None
    others = {t.axes[0].factors[0] for t in sig.ins if t.axes and t.axes[0].variadic} - {name}
    return None if name in later or others else name


def elem_of_kernel(op: Op) -> dict[str, str]:
    """What a kernel of the op says of elements that are not f32."""
    from irloom.backends.cpu.extern import KERNELS

    made = KERNELS.get(op.name)
    return {t.name: t.elem for t in made.head.tensors if t.elem != "f32"} if made else {}
