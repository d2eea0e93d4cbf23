"""How a library tensor looks in the IR: a value, and a lazy order of its dims.

The library computes on ``[1, T, ...]`` tensors, moves heads in front of tokens and adds dims of size 1 to
broadcast. The IR has no batch dim and keeps tokens first. A ``View`` holds the difference, so that
transposing, squeezing and unsqueezing emit nothing; only what an op needs in another order is permuted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from irloom.ir import ops
from irloom.ir.dims import Dim, divide, product, symbols
from irloom.ir.errors import IRError, TraceError
from irloom.ir.graph import Value
from irloom.ir.signature import Literal


@dataclass(frozen=True)
class View:
    """``order[i]`` is the dim of ``value`` that the library calls ``i``; None is a dim of size 1 that it
    lacks.

    Every dim of ``value`` occurs once. The batch dim is one of the dims that are lacking.
    """

    value: Value
    order: tuple[int | None, ...]

    @staticmethod
    def of(value: Value) -> View:
        """A value whose dims are the library's."""
        return View(value, tuple(range(value.type.rank)))

    @property
    def rank(self) -> int:
        """How many dims the library sees."""
        return len(self.order)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The dims the library sees."""
        return tuple(1 if at is None else self.value.type.dims[at] for at in self.order)

    def dim(self, i: int) -> int:
        """``i`` counted from the front."""
        if not -self.rank <= i < max(self.rank, 1):
            raise TraceError(f"dim {i} of a tensor with {self.rank} dims does not exist")
        return i % self.rank if self.rank else 0

    def permuted(self, dims: Sequence[int]) -> View:
        """Dims in another order."""
        return View(self.value, tuple(self.order[self.dim(d)] for d in dims))

    def swapped(self, a: int, b: int) -> View:
        """Two dims exchanged."""
        order = list(self.order)
        a, b = self.dim(a), self.dim(b)
        order[a], order[b] = order[b], order[a]
        return View(self.value, tuple(order))

    def unsqueezed(self, at: int) -> View:
        """A dim of size 1 more, at ``at`` of the result."""
        at = at % (self.rank + 1)
        return View(self.value, (*self.order[:at], None, *self.order[at:]))

    def squeezed(self, at: int) -> View:
        """Without dim ``at`` where its size is 1."""
        at = self.dim(at)
        if self.order[at] is None:
            return View(self.value, (*self.order[:at], *self.order[at + 1 :]))
        if self.dims[at] != 1:
            return self
        rest = [d for d in self.memory() if d != at]
        return viewed(self.arranged(rest), rest, self.rank).squeezed(at)

    def memory(self) -> list[int]:
        """The library's dims that the value has, in the order it has them."""
        return sorted(
            (d for d in range(self.rank) if self.order[d] is not None), key=lambda d: self.order[d] or 0
        )

    def arranged(self, wanted: Sequence[int]) -> Value:
        """The value with exactly the library's dims ``wanted``, in this order; the others must have size
        1.
        """
        kept = [self.order[d] for d in wanted]
        there = [at for at in kept if at is not None]
        gone = [at for at in range(self.value.type.rank) if at not in there]
        value = self.value
        if there != sorted(there):
            value = ops.permute(value, dims=(*there, *gone))
        return reshaped(value, tuple(self.dims[d] for d in wanted))

    def tokens_first(self) -> View:
        """The same with the value's token dim in front, where it is elsewhere."""
        wanted = in_front(self.memory(), self.dims)
        return self if wanted == self.memory() else viewed(self.arranged(wanted), wanted, self.rank)

    def rowmajor(self) -> View:
        """The value in the library's order of dims."""
        wanted = [d for d in range(self.rank) if self.order[d] is not None]
        return viewed(self.arranged(wanted), wanted, self.rank)

    def with_last(self, dim: int) -> tuple[Value, list[int]]:
        """The value with library dim ``dim`` last, and the order of dims it has then."""
        dim = self.dim(dim)
        wanted = [*(d for d in self.memory() if d != dim), dim]
        return self.arranged(wanted), wanted


Operand = View | Literal


def in_front(dims: Iterable[int], sizes: Sequence[Dim]) -> list[int]:
    """``dims`` with those whose size depends on the tokens first, each kind in the order it has."""
    return sorted(dims, key=lambda d: not symbols(sizes[d]))


def viewed(value: Value, dims: Sequence[int], rank: int) -> View:
    """A view of ``value``, whose dims are the library's ``dims`` of ``rank`` in this order."""
    order: list[int | None] = [None] * rank
    for at, d in enumerate(dims):
        order[d] = at
    return View(value, tuple(order))


def reshaped(value: Value, dims: tuple[Dim, ...]) -> Value:
    """``value`` with ``dims``; itself when it has them."""
    return value if value.type.dims == dims else ops.reshape(value, dims=dims)


def aligned(operands: Sequence[Operand]) -> tuple[list[Value | Literal], list[int], int]:
    """Values that broadcast in the IR as the operands do in the library; then the result's dims and rank.

    The operand with the most dims keeps its order, the others are permuted and reshaped to fit it; where none
    has all of them, tokens come first. Dims of size 1 do not count.
    """
    views = [x for x in operands if isinstance(x, View)]
    rank = max(v.rank for v in views)
    sizes: list[Dim] = [1] * rank
    for v in views:
        for d, n in enumerate(v.dims, rank - v.rank):
            sizes[d] = n if n != 1 else sizes[d]
    lead = max(views, key=lambda v: (sum(n != 1 for n in v.dims), len(v.memory())))
    wanted = [d + rank - lead.rank for d in lead.memory()]
    wide = [d for d in range(rank) if sizes[d] != 1]
    if not set(wide) <= set(wanted):
        wanted = in_front(wide, sizes)
    return [_fit(x, wanted, rank) if isinstance(x, View) else x for x in operands], wanted, rank


def _fit(view: View, wanted: list[int], rank: int) -> Value:
    """The value of ``view`` with the dims ``wanted``, less those in front that broadcasting adds by
    itself.
    """
    lacking = rank - view.rank
    own = [d - lacking if d >= lacking and view.order[d - lacking] is not None else None for d in wanted]
    while own and own[0] is None:
        own = own[1:]
    dense = view.arranged([d for d in own if d is not None])
    return reshaped(dense, tuple(1 if d is None else view.dims[d] for d in own))


def reshape(view: View, dims: Sequence[Dim]) -> View:
    """The library's view or reshape. One dim may be -1. Dims of size 1 in front become the batch dim.

    Dims that stay apart stay where they are in memory; only when dims merge that are not neighbours there is
    the value permuted to the library's order first.
    """
    known = product(d for d in dims if d != -1)
    sizes = [divide(product(view.dims), known) if d == -1 else d for d in dims]
    groups = _groups(view.dims, sizes)
    spans = [[at for d in old if (at := view.order[d]) is not None] for old, _ in groups]
    if any(span != list(range(span[0], span[0] + len(span))) for span in spans if span):
        return reshape(view.rowmajor(), sizes)
    front = next((i for i, d in enumerate(sizes[:-1]) if d != 1), len(sizes) - 1)
    by_memory = sorted((span[0], new) for span, (_, new) in zip(spans, groups, strict=True) if span)
    wanted = [d for _, new in by_memory for d in new if d >= front]
    return viewed(reshaped(view.value, tuple(sizes[d] for d in wanted)), wanted, len(sizes))


def _groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """The finest cut of both lists of dims into pairs with equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = list(range(i, min(i + 1, len(old)))), list(range(j, min(j + 1, len(new))))
        while (p := product(old[d] for d in a)) != (q := product(new[d] for d in b)):
            if _divides(p, q) and i + len(a) < len(old):
                a.append(i + len(a))
            elif j + len(b) < len(new):
                b.append(j + len(b))
            else:
                a.append(i + len(a))
        i, j = i + len(a), j + len(b)
        groups.append((a, b))
    return groups


def _divides(a: Dim, b: Dim) -> bool:
    """Whether ``b / a`` is a dim."""
    try:
        divide(b, a)
    except IRError:
        return False
    return True
