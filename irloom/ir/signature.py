"""The signature language: one string from which shapes, errors, sharding and cost of an op follow.

``"*b k, n k -> *b n"`` is ``linear``: operands left, results right, dims by name.

| sign      | means                                                                         |
|-----------|-------------------------------------------------------------------------------|
| ``d``     | a dim; the same name is the same size and the same mesh axis everywhere         |
| ``!d``    | a dim that must be whole on every rank                                         |
| ``*b``    | any number of leading dims                                                     |
| ``~b``    | any number of dims, broadcast against each other; a plain number fits too      |
| ``(g d)`` | one dim that is a product, major factor first; the major factor carries the axis |
| ``%v``    | an indexed dim: it disappears without being summed (embedding, gather)          |
| ``_``     | an operand or result whose dims a hook relates, not the signature              |
| ``+``     | in front of an operand or result: it may be a sum still split over a mesh axis |
| ``?``     | after an operand: it may be absent                                             |

A dim that stands left only is summed: when it is split over an axis the result is a partial sum.

Elements are not in it: a result has that of the first operand. Where an op says otherwise, as one whose first
operand is an index, a hook does: ``@name.dtype`` on a function ``(types, attrs)`` that gives the element.
What else a signature cannot say goes the same way: ``.verify`` refuses, ``.shape`` gives result types where
dims depend on attributes, ``.flops`` and ``.bytes`` count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import cast

from .dims import Dim, divide, product
from .elem import AnyElem
from .errors import IRError
from .types import Type, show_split

Literal = int | float | bool
Axes = tuple[str | None, ...]
Operand = Type | Literal | None


@dataclass(frozen=True)
class Axis:
    """One item of a term: its factors and how it may be used."""

    factors: tuple[str, ...]
    whole: bool = False
    lead: bool = False
    broadcast: bool = False
    indexed: bool = False

    @property
    def variadic(self) -> bool:
        """Whether it stands for any number of dims."""
        return self.lead or self.broadcast


@dataclass(frozen=True)
class Term:
    """One operand or result of a signature; ``axes`` is None when it is opaque."""

    axes: tuple[Axis, ...] | None
    optional: bool = False
    partial: bool = False


@dataclass(frozen=True)
class Signature:
    """A parsed signature."""

    text: str
    ins: tuple[Term, ...]
    outs: tuple[Term, ...]

    @property
    def summed(self) -> frozenset[str]:
        """Factors that the op sums over."""
        return _factors(self.ins) - _factors(self.outs) - self.indexed

    @property
    def indexed(self) -> frozenset[str]:
        """Factors that the op picks entries of."""
        return frozenset(f for t in self.ins for a in t.axes or () if a.indexed for f in a.factors)


@cache
def parse_signature(text: str) -> Signature:
    """Read a signature.

    >>> sorted(parse_signature("*b k, n k -> *b n").summed)
    ['k']
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise IRError(f"signature {text!r} has no `->`")
    ins = tuple(_term(t) for t in left.split(",")) if left.strip() else ()
    return Signature(text, ins, tuple(_term(t) for t in right.split(",")))


def _term(text: str) -> Term:
    text = text.strip()
    optional, text = text.endswith("?"), text.removesuffix("?")
    partial, text = text.startswith("+"), text.removeprefix("+").strip()
    if text == "_":
        return Term(None, optional, partial)
    return Term(tuple(_axis(t) for t in re.findall(r"\([^)]*\)|\S+", text)), optional, partial)


def _axis(token: str) -> Axis:
    if token[0] == "(":
        return Axis(tuple(token[1:-1].split()))
    mark = token[0] if token[0] in "!*~%" else ""
    return Axis((token[len(mark) :],), mark == "!", mark == "*", mark == "~", mark == "%")


def _factors(terms: Sequence[Term]) -> frozenset[str]:
    return frozenset(f for t in terms for a in t.axes or () for f in a.factors)


@dataclass
class Binding:
    """What the names of a signature stand for in one application of an op."""

    op: str
    signature: Signature
    size: dict[str, Dim] = field(default_factory=dict[str, Dim])
    axis: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    lead: dict[str, tuple[tuple[Dim, ...], Axes]] = field(
        default_factory=dict[str, tuple[tuple[Dim, ...], Axes]]
    )
    owner: dict[str, str] = field(default_factory=dict[str, str])
    products: list[tuple[str, Type, Axis, Dim]] = field(default_factory=list[tuple[str, Type, Axis, Dim]])
    partials: dict[str, str | None] = field(default_factory=dict[str, "str | None"])

    @property
    def partial(self) -> str | None:
        """The axis over which the operands that may be partial sums are split, which is the same for all."""
        return next(iter(self.partials.values()), None)

    def result(self, term: Term, elem: AnyElem) -> Type:
        """The type of a result with this element."""
        dims: list[Dim] = []
        axes: list[str | None] = []
        for a in term.axes or ():
            if a.variadic:
                lead_dims, lead_axes = self.lead[a.factors[0]]
                dims += lead_dims
                axes += lead_axes
                continue
            if missing := [f for f in a.factors if f not in self.size]:
                raise IRError(f"{self.op}: the operands leave dim `{missing[0]}` of the result open")
            dims.append(product(self.size[f] for f in a.factors))
            axes.append(self.axis.get(a.factors[0]))
        split = sorted({s for f in self.signature.summed if (s := self.axis.get(f))})
        if len(split) > 1:
            raise IRError(f"{self.op}: the sum is split over two mesh axes, {split[0]} and {split[1]}")
        partial = split[0] if split else self.partial if term.partial else None
        return Type(elem, tuple(dims), tuple(axes), partial)

    def volume(self) -> Dim:
        """The product of every dim: how many times the innermost operation runs."""
        leads = (product(dims) for dims, _ in self.lead.values())
        return product([*self.size.values(), *leads])


def bind(
    op: str, sig: Signature, names: Sequence[str], operands: Sequence[Operand], attrs: Mapping[str, object]
) -> Binding:
    """Match operand types against a signature; ``IRError`` names the op, operand and dim that do not fit."""
    known = _factors(sig.ins) | _factors(sig.outs)
    sizes = {k: v for k, v in attrs.items() if k in known and isinstance(v, int)}
    b = Binding(op, sig, size=cast("dict[str, Dim]", dict(sizes)))
    for name, term, t in zip(names, sig.ins, operands, strict=False):
        if t is None:
            if not term.optional:
                raise IRError(f"{op}: operand `{name}` is missing", hint=f"signature: {sig.text}")
        elif isinstance(t, Type):
            _bind_operand(b, name, term, t)
        elif term.axes is None or not all(a.broadcast for a in term.axes):
            raise IRError(
                f"{op}: operand `{name}` is the number {t}, not a tensor", hint=f"signature: {sig.text}"
            )
        else:
            if term.partial:
                _bind_partial(b, name, t, None)
            b.lead.setdefault(term.axes[0].factors[0], ((), ()))
    for name, t, a, d in b.products:
        _bind_product(b, name, t, a, d)
    return b


def _bind_operand(b: Binding, name: str, term: Term, t: Type) -> None:
    if t.partial and not term.partial:
        raise IRError(
            f"{b.op}: operand `{name}` is {t}, a sum still split over `{t.partial}`",
            hint=f"all_reduce(axis={t.partial!r}) it first",
        )
    if term.partial:
        _bind_partial(b, name, t, t.partial)
    if term.axes is None:
        return
    fixed = sum(not a.variadic for a in term.axes)
    loose = t.rank - fixed
    if loose < 0 or (loose and fixed == len(term.axes)):
        raise IRError(f"{b.op}: operand `{name}` is {t}, wrong rank", hint=f"signature: {b.signature.text}")
    at = 0
    for a in term.axes:
        if a.variadic:
            _bind_lead(b, name, t, a, t.dims[at : at + loose], t.axes[at : at + loose])
            at += loose
        else:
            _bind_dim(b, name, t, a, t.dims[at], t.axes[at])
            at += 1


def _bind_partial(b: Binding, name: str, t: Operand, partial: str | None) -> None:
    """Operands are split over one axis or none is: what is whole would be added once per rank."""
    for other, was in b.partials.items():
        if was != partial:
            open_, whole = (other, f"`{name}` is {t}") if was else (name, f"`{other}` is not")
            raise IRError(
                f"{b.op}: operand `{open_}` is a sum still split over `{was or partial}`, but {whole}",
                hint=f"all_reduce(axis={was or partial!r}) it first",
            )
    b.partials[name] = partial


def _bind_dim(b: Binding, name: str, t: Type, a: Axis, d: Dim, axis: str | None) -> None:
    f = a.factors[0]
    if axis and a.whole:
        raise IRError(
            f"{b.op}: dim `{f}` of `{name}` must be whole, but {t} splits it over `{axis}`",
            hint=f"all_gather(axis={axis!r}) before this op, or split another dim",
        )
    if f in b.axis and b.axis[f] != axis:
        raise IRError(
            f"{b.op}: dim `{f}` is split over `{b.axis[f]}` in one operand and `{axis}` in `{name}` ({t})",
            hint="reshard one of them",
        )
    b.axis[f] = axis
    if len(a.factors) > 1:
        b.products.append((name, t, a, d))
    elif b.size.setdefault(f, d) != d:
        was = f"operand `{b.owner[f]}`" if f in b.owner else "the attribute"
        raise IRError(
            f"{b.op}: dim `{f}` is {b.size[f]} by {was}, but operand `{name}` ({t}) makes it {d}",
            hint=f"signature: {b.signature.text}",
        )
    b.owner.setdefault(f, name)


def _bind_lead(b: Binding, name: str, t: Type, a: Axis, dims: tuple[Dim, ...], axes: Axes) -> None:
    f = a.factors[0]
    seen = b.lead.get(f)
    if seen is None:
        b.lead[f] = (dims, axes)
    elif a.broadcast:
        b.lead[f] = _broadcast(b.op, name, t, seen, (dims, axes))
    elif seen != (dims, axes):
        raise IRError(
            f"{b.op}: operand `{name}` ({t}) has leading dims {_list(dims, axes)}, "
            f"but `{b.owner[f]}` has {_list(*seen)}",
            hint=f"signature: {b.signature.text}",
        )
    b.owner.setdefault(f, name)


def _list(dims: tuple[Dim, ...], axes: Axes) -> str:
    return f"[{', '.join(show_split(d, a) for d, a in zip(dims, axes, strict=True))}]"


def _broadcast(
    op: str, name: str, t: Type, x: tuple[tuple[Dim, ...], Axes], y: tuple[tuple[Dim, ...], Axes]
) -> tuple[tuple[Dim, ...], Axes]:
    rank = max(len(x[0]), len(y[0]))
    rows: list[tuple[Dim, str | None]] = []
    for i in range(-rank, 0):
        p = (x[0][i], x[1][i]) if len(x[0]) >= -i else (1, None)
        q = (y[0][i], y[1][i]) if len(y[0]) >= -i else (1, None)
        if p[0] != q[0] and p[0] != 1 and q[0] != 1:
            raise IRError(f"{op}: operand `{name}` is {t}, and {q[0]} does not broadcast against {p[0]}")
        if p[0] == q[0] and p[1] != q[1]:
            raise IRError(
                f"{op}: operand `{name}` is {t}, but another splits that dim over `{p[1]}`",
                hint="reshard one of them",
            )
        rows.append(q if p[0] == 1 else p)
    return tuple(d for d, _ in rows), tuple(a for _, a in rows)


def _bind_product(b: Binding, name: str, t: Type, a: Axis, d: Dim) -> None:
    unknown = [f for f in a.factors if f not in b.size]
    known = product(b.size[f] for f in a.factors if f in b.size)
    written = f"({' '.join(a.factors)})"
    if not unknown:
        if known != d:
            raise IRError(f"{b.op}: dim `{written}` of `{name}` ({t}) is {d}, but its factors make {known}")
        return
    if len(unknown) > 1:
        raise IRError(
            f"{b.op}: dim `{written}` of `{name}` ({t}) leaves `{unknown[0]}` and `{unknown[1]}` open"
        )
    try:
        b.size[unknown[0]] = divide(d, known)
    except IRError:
        raise IRError(
            f"{b.op}: dim `{written}` of `{name}` ({t}) is {d}, which {known} does not divide",
            hint=f"signature: {b.signature.text}",
        ) from None
