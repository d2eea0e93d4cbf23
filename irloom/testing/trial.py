"""What to try an op on: operand types that fit its signature, a random size for every dim, and attributes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from irloom.ir.dims import Dim, sym
from irloom.ir.elem import ELEMS
from irloom.ir.errors import IRError
from irloom.ir.op import Attr, Op
from irloom.ir.parse import parse
from irloom.ir.show import show_attr
from irloom.ir.signature import Axis, Operand, Signature
from irloom.ir.types import Type

T = sym("T")
SIZES = (2, 3, 4, 5, 6, 8)
"""Of dims: small, mostly different from each other, and some that others divide."""


class CannotTry(IRError):
    """An op whose signature does not say what to try it on."""


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


def cannot_draw(op: Op, elems: Mapping[str, str]) -> str | None:
    """Why operands of ``op`` do not follow from its signature; ``elems`` are those that are known not f32."""
    terms = (*op.signature.ins, *op.signature.outs)
    if op.variadic or any(t.axes is None for t in terms):
        return "its signature leaves dims to hooks"
    if op.signature.indexed and not elems:
        return "one of its operands holds indices"
    factors = {f for t in terms for a in t.axes or () for f in a.factors}
    for name, default in op.attrs.items():
        if default is inspect.Parameter.empty and name not in factors and _kind(op, name) not in _DRAWN:
            return f"attribute `{name}` has no default"
    return None


def drawn(
    op: Op,
    count: int,
    elems: Mapping[str, str],
    attrs: Mapping[str, Any],
    sizes: Sequence[int] = SIZES,
    broadcast: bool = True,
) -> Iterator[Trial]:
    """``count`` trials that fit the signature and the op's hooks, the same ones every time.

    ``attrs`` are taken as given, one of each list.

    Optional operands come and go, floats are f32 and bf16 in turn, and truth values and numbers that may be
    None take both. ``CannotTry`` when nothing fits.
    """
    random, made, refused = Random(op.name), 0, None
    for at in range(50 * count):
        fixed = {k: random.choice(v) if isinstance(v, list) else v for k, v in attrs.items()}
        trial = _draw(op, random, at, elems, fixed, sizes, broadcast=broadcast)
        try:
            op.infer(trial.operands, trial.attrs)
        except IRError as error:
            refused = error
            continue
        yield trial
        made += 1
        if made == count:
            return
    if not made:
        why = refused.message if refused else "none was tried"
        raise CannotTry(f"{op.name}: no operands were found that it takes: {why}", hint="give some")


def _draw(
    op: Op,
    random: Random,
    at: int,
    elems: Mapping[str, str],
    fixed: Mapping[str, Any],
    sizes: Sequence[int],
    *,
    broadcast: bool,
) -> Trial:
    sig = op.signature
    factors = dict.fromkeys(f for t in (*sig.ins, *sig.outs) for a in t.axes or () for f in a.factors)
    size = {f: random.choice([s for s in sizes if s > 3] if f in sig.indexed else sizes) for f in factors}
    size.update({f: n for f, n in fixed.items() if f in factors})
    lead = {f: _lead(random, sizes, anywhere=broadcast) if at else (T,) for f in factors}
    float_ = "bf16" if broadcast and at % 3 == 2 else "f32"
    absent = random.choice([0, 1])
    operands: list[Operand] = []
    for name, term in zip(op.operands, sig.ins, strict=True):
        if term.optional and (random.random() < 0.5) == bool(absent):
            operands.append(None)
            continue
        dims = tuple(d for a in term.axes or () for d in _dims(a, size, lead))
        if broadcast and at and any(a.broadcast for a in term.axes or ()):
            dims = _broadcast(dims, random)
        operands.append(Type(ELEMS[elems.get(name, float_)], dims))
    attrs = {name: size[name] if name in factors else _attribute(op, name, random) for name in op.attrs}
    return Trial(op, tuple(operands), op.complete({**attrs, **fixed}))


def _lead(random: Random, sizes: Sequence[int], *, anywhere: bool) -> tuple[Dim, ...]:
    """Leading dims; ``anywhere``: tokens need not come first."""
    n = random.choice(sizes)
    return random.choice([(T,), (T, n), *([(n, T)] if anywhere else [])])


def _dims(a: Axis, size: Mapping[str, int], lead: Mapping[str, tuple[Dim, ...]]) -> tuple[Dim, ...]:
    if a.variadic:
        return lead[a.factors[0]]
    whole = 1
    for f in a.factors:
        whole *= size[f]
    return (whole,)


def _broadcast(dims: tuple[Dim, ...], random: Random) -> tuple[Dim, ...]:
    """Some dims as 1, or without the first ones."""
    some = tuple(1 if random.random() < 0.3 else d for d in dims)
    return some[random.choice([0, 0, len(dims) - 1]) :]


_DRAWN = ("float", "bool")


def _kind(op: Op, name: str) -> str:
    """``float``, ``bool``, ... as the body says it; may be ``float | None``."""
    p = inspect.signature(op.reference).parameters.get(name)
    if p is None or p.annotation is inspect.Parameter.empty:
        return type(op.attrs[name]).__name__
    return inspect.formatannotation(p.annotation).strip("'\"")


def _attribute(op: Op, name: str, random: Random) -> Any:
    """A value: both of a truth value, a number of where there may be none; else the default."""
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
