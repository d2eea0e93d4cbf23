"""What a chain of reshapes and permutes does, however long: dims are cut into atoms, which change places.

Two chains that do the same have equal views, and a view knows the shortest chain that does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irloom.ir.dims import Dim, divide, product
from irloom.ir.errors import IRError
from irloom.ir.graph import Node
from irloom.ir.op import Op
from irloom.ir.ops import permute, reshape

Step = tuple[Op, tuple[Dim, ...]]
"""``reshape`` or ``permute``, and its ``dims``."""


@dataclass(frozen=True)
class View:
    """``sizes`` are the atoms in the order in which they lie in the source; dims of size 1 have none.

    ``source`` and ``result`` say of each dim which atoms it is made of, the major one first.
    """

    sizes: tuple[Dim, ...]
    source: tuple[tuple[int, ...], ...]
    result: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(dims: Sequence[Dim]) -> View:
        """The view that changes nothing.

        >>> View.of((8, 1, 4)).then(permute, (2, 0, 1)).steps() == [(permute, (2, 0, 1))]
        True
        """
        sizes = tuple(d for d in dims if d != 1)
        atoms = iter(range(len(sizes)))
        groups = tuple((next(atoms),) if d != 1 else () for d in dims)
        return View(sizes, groups, groups)

    def dims(self, groups: Sequence[tuple[int, ...]]) -> tuple[Dim, ...]:
        """The sizes of dims that are made of atoms."""
        return tuple(product(self.sizes[a] for a in group) for group in groups)

    @property
    def still(self) -> bool:
        """Whether entries stay in the order in which they lie."""
        flat = [a for group in self.result for a in group]
        return flat == sorted(flat)

    def then(self, op: Op, dims: tuple[Dim, ...]) -> View | None:
        """One more reshape or permute after this view; None where dims do not divide into atoms."""
        if op is permute:
            return View(self.sizes, self.source, tuple(self.result[int(str(d))] for d in dims))
        return self._regrouped(dims)

    def over(self, steps: Sequence[Step]) -> View | None:
        """Several more."""
        v: View | None = self
        for op, dims in steps:
            v = v and v.then(op, dims)
        return v

    def _regrouped(self, dims: tuple[Dim, ...]) -> View | None:
        v, at = self, 0  # the atoms before `at`, in the order of the result, have their dims
        ends: list[int] = []
        for need in dims:
            while need != 1:
                flat = [a for group in v.result for a in group]
                size = v.sizes[flat[at]] if at < len(flat) else 0
                if (rest := _share(need, size)) is not None:
                    need = rest
                elif (rest := _share(size, need)) is not None:
                    v, need = v._cut(flat[at], need, rest), 1
                else:
                    return None
                at += 1
            ends.append(at)
        flat = [a for group in v.result for a in group]
        starts = [0, *ends][:-1]
        return View(v.sizes, v.source, tuple(tuple(flat[a:b]) for a, b in zip(starts, ends, strict=True)))

    def _cut(self, atom: int, major: Dim, minor: Dim) -> View:
        """The same with one atom as two."""

        def cut(groups: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
            def one(a: int) -> tuple[int, ...]:
                return (a, a + 1) if a == atom else (a + (a > atom),)

            return tuple(tuple(new for a in group for new in one(a)) for group in groups)

        sizes = (*self.sizes[:atom], major, minor, *self.sizes[atom + 1 :])
        return View(sizes, cut(self.source), cut(self.result))

    def of_operand(self, dims: Sequence[Dim]) -> View | None:
        """What this view is for an operand of ``dims`` that broadcasts to the source.

        None where a dim of the result would be part of one that the operand has, part of one that it lacks.
        """
        missing = len(self.source) - len(dims)
        whole = self.dims(self.source)
        lost = {
            a
            for i, group in enumerate(self.source)
            for a in group
            if i < missing or (dims[i - missing] == 1 != whole[i])
        }
        if any(lost.intersection(group) and not lost.issuperset(group) for group in self.result):
            return None
        kept = [a for a in range(len(self.sizes)) if a not in lost]

        def left(groups: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
            return [tuple(kept.index(a) for a in group if a not in lost) for group in groups]

        result = left(self.result)
        while missing > 0 and len(result) > 1 and not result[0]:
            result, missing = result[1:], missing - 1
        source = left(self.source)[len(self.source) - len(dims) :]
        return View(tuple(self.sizes[a] for a in kept), tuple(source), tuple(result))

    def steps(self) -> list[Step]:
        """The fewest reshapes and permutes that do this; none where nothing changes."""
        source, result = self.dims(self.source), self.dims(self.result)
        if self.still:
            return [] if source == result else [(reshape, result)]
        if (order := _order(self.source, self.result)) is not None:
            return [(permute, order)]
        flat = [a for group in self.result for a in group]
        runs = _runs(flat)
        if all(any(set(group) <= set(run) for run in runs) for group in self.source):
            ranked = sorted((g for g in self.source if g), key=lambda g: flat.index(g[0]))
            order = _order(self.source, [*ranked, *(g for g in self.source if not g)])
            assert order is not None
            return [(permute, order), (reshape, result)]
        middle = sorted((g for g in self.result if g), key=lambda g: g[0])
        if all(group == tuple(range(group[0], group[-1] + 1)) for group in middle):
            laid = [*middle, *(g for g in self.result if not g)]
            order = _order(laid, self.result)
            assert order is not None
            return [(reshape, self.dims(laid)), (permute, order)]
        laid = sorted(runs)
        order = _order(laid, runs)
        assert order is not None
        return [(reshape, self.dims(laid)), (permute, order), (reshape, result)]


def step_of(n: Node) -> Step | None:
    """A node as a step, if it is one."""
    dims = n.attrs.get("dims")
    if n.op not in (reshape, permute) or not isinstance(dims, tuple):
        return None
    given: tuple[Dim, ...] = dims  # pyright: ignore[reportAssignmentType]
    return n.op, given


def cost(steps: Sequence[Step]) -> tuple[int, int]:
    """What steps take: permutes move entries, reshapes do not."""
    return sum(op is permute for op, _ in steps), len(steps)


def _share(a: Dim, b: Dim) -> Dim | None:
    """``a / b`` where it is exact."""
    try:
        return divide(a, b) if b else None
    except IRError:
        return None


def _runs(flat: Sequence[int]) -> list[tuple[int, ...]]:
    """Atoms that lie side by side in the source and in the result."""
    runs: list[list[int]] = []
    for a in flat:
        if runs and runs[-1][-1] + 1 == a:
            runs[-1].append(a)
        else:
            runs.append([a])
    return [tuple(run) for run in runs]


def _order(source: Sequence[tuple[int, ...]], result: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Where each dim of the result stands in the source; None if one is not there as it is."""
    if sorted(source) != sorted(result):
        return None
    free = [i for i, group in enumerate(source) if not group]
    return tuple(source.index(group) if group else free.pop(0) for group in result)
