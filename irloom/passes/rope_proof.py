"""Whether a region is a rotary embedding: run on random numbers, it gives what ``rope`` gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from irloom.ir import ops
from irloom.ir.dims import Dim
from irloom.ir.graph import Value
from irloom.ir.ops.attention import default_frequencies

from .region import Consts, Region, constant, is_const

POSITIONS = torch.tensor([0, 1, 2, 3, 17, 100, 1023, 2500], dtype=torch.int32)
"""Positions on which a region is run, as far as its tables reach: the first shows the scale of the tables,
where every angle is 0."""

TOLERANCE = 1e-4

Frequencies = tuple[Value | torch.Tensor, torch.Tensor]
"""What a ``rope`` would take, and its entries: radians per token of each pair."""

Rows = tuple[Dim, int, int]
"""Tokens, heads, features."""


@dataclass(frozen=True)
class Form:
    """How features pair: with their neighbour, or half of them further.

    ``apart``: neighbours become halves first.
    """

    interleaved: bool = False
    apart: bool = False


FORMS = (Form(), Form(interleaved=True), Form(apart=True))


@dataclass(frozen=True)
class Rope:
    """A ``rope`` of rows [T, heads, d]. ``freq`` is its operand unless ``theta`` gives the same frequencies.

    ``offset`` is where the features that turn start in those of the value; None: they are all of it.
    """

    rows: Rows
    offset: int | None
    rotary: int | None
    form: Form
    scale: float
    freq: Value | torch.Tensor | None
    theta: float

    def build(self, x: Value, positions: Value, freq: Value | None, dims: tuple[Dim, ...]) -> Value:
        """The ops that rotate ``x``; the result has ``dims``."""
        tokens, heads, d = self.rows
        if self.offset is not None:
            x = ops.slice_(x, dim=-1, start=self.offset, stop=self.offset + d)
        x = _reshaped(x, self.rows)
        if self.form.apart:
            pairs = ops.reshape(x, dims=(tokens, heads, d // 2, 2))
            x = ops.reshape(ops.permute(pairs, dims=(0, 1, 3, 2)), dims=self.rows)
        how = {"rotary": self.rotary, "interleaved": self.form.interleaved, "scale": self.scale}
        return _reshaped(ops.rope(x, positions, freq, theta=self.theta, **how), dims)


def _reshaped(x: Value, dims: tuple[Dim, ...]) -> Value:
    return x if x.type.dims == dims else ops.reshape(x, dims=dims)


def prove(region: Region, consts: Consts) -> Rope | None:
    """The ``rope`` that gives the end of a region from its start; None if none of the forms does."""
    (end,) = region.ends
    tokens = next((v.type.dims[0] for v in region.leaves if not is_const(v)), 1)
    sizes = [n if isinstance(n, int) else len(POSITIONS) for n in region.start.type.dims]
    candidates = list(_rows(end.type.dims, tokens))
    if not candidates or end.type.elem != region.start.type.elem or not _lead(region.start.type.dims, tokens):
        return None
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    tables = [constant(t, consts) for t in _looked_up(region)]
    at = POSITIONS.clamp(max=min(map(len, tables), default=int(POSITIONS.max()) + 1) - 1)
    given = {v: at for v in region.leaves if not is_const(v)}
    frame = region.run({region.start: x, **given}, consts, len(at))
    known = [*_vectors(frame), *(found for table in tables for found in _tabulated(table))]
    for rows in candidates:
        got = frame[end].reshape(len(POSITIONS), *rows[1:])
        for offset, part in _windows(region, x, rows):
            rope = _fits(region, known, at, part, got)
            if rope:
                return replace(rope, rows=rows, offset=offset)
    return None


def _fits(
    region: Region, known: list[Frequencies], at: torch.Tensor, x: torch.Tensor, got: torch.Tensor
) -> Rope | None:
    """Of rows ``x`` [T, heads, d] at positions ``at``, the rotation that gives ``got``."""
    d = x.shape[-1]
    scale = _scale(got, x, region)
    apart = x if d % 2 else torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    for freq, table in known:
        if not 0 < 2 * len(table) <= d:
            continue
        rotary = None if 2 * len(table) == d else 2 * len(table)
        for form, turn in product(FORMS if rotary is None else FORMS[:2], (table, -table)):
            how = {"rotary": rotary, "interleaved": form.interleaved, "scale": scale}
            turned = ops.rope(apart if form.apart else x, at, turn, **how)
            if torch.allclose(turned, got, rtol=TOLERANCE, atol=TOLERANCE):
                theta = theta_of(turn)
                operand = None if theta is not None else freq if turn is table else turn
                return Rope((1, 1, d), None, rotary, form, scale, operand, theta or 10000.0)
    return None


def theta_of(table: torch.Tensor) -> float | None:
    """The base whose default frequencies are exactly ``table``, else None.

    >>> theta_of(default_frequencies(500000.0, 8))
    500000.0
    >>> theta_of(torch.tensor([1.0, 0.3, 0.1])) is None
    True
    """
    n = 2 * len(table)
    if table[0] != 1 or table[-1] <= 0:
        return None
    for digits in range(1, 9):
        theta = float(f"{_base(table):.{digits}g}")
        if torch.equal(default_frequencies(theta, n), table):
            return theta
    return None


def _lead(dims: tuple[Dim, ...], tokens: Dim) -> tuple[Dim, ...] | None:
    """The dims behind the tokens, before which only dims of size 1 may come."""
    while dims and dims[0] == 1:
        dims = dims[1:]
    return dims[1:] if len(dims) > 1 and dims[0] == tokens and not isinstance(tokens, int) else None


def _rows(dims: tuple[Dim, ...], tokens: Dim) -> Iterator[Rows]:
    """Dims as tokens, heads and features: the last one's, or those of pairs."""
    inner = _lead(dims, tokens)
    if inner and all(isinstance(n, int) for n in inner):
        sizes = [n for n in inner if isinstance(n, int)]
        yield tokens, math.prod(sizes[:-1]), sizes[-1]
        if len(sizes) > 1 and sizes[-1] == 2:
            yield tokens, math.prod(sizes[:-2]), 2 * sizes[-2]


def _windows(region: Region, x: torch.Tensor, rows: Rows) -> Iterator[tuple[int | None, torch.Tensor]]:
    """What of the start could have turned into ``rows``: all of it, or the features from some offset on."""
    _, heads, d = rows
    if x.numel() == len(POSITIONS) * heads * d:
        yield None, x.reshape(-1, heads, d)
    elif x.shape[-1] > d and x.numel() == len(POSITIONS) * heads * x.shape[-1]:
        cuts = [n.attrs["start"] for n in region.nodes if n.op is ops.slice_ and n.args[0] is region.start]
        for at in dict.fromkeys(at for at in cuts if isinstance(at, int) and at + d <= x.shape[-1]):
            yield at, x.reshape(-1, heads, x.shape[-1])[..., at : at + d]


def _vectors(frame: dict[Value, torch.Tensor]) -> Iterator[Frequencies]:
    """Vectors in a region that could be frequencies."""
    for v, x in frame.items():
        if v.type.rank == 1 and isinstance(v.type.dims[0], int) and x.is_floating_point():
            yield v, x


def _looked_up(region: Region) -> list[Value]:
    """Constants that a region looks up rows of."""
    read = [n.args[1] for n in region.nodes if n.op is ops.embedding]
    return [t for t in read if isinstance(t, Value) and is_const(t)]


def _tabulated(table: torch.Tensor) -> Iterator[Frequencies]:
    """The default frequencies whose sines and cosines a table has side by side, read off position 1."""
    if len(table) < 2 or table.shape[-1] % 2:
        return
    halves = table[1].float().flatten().chunk(2)
    for sin, cos in (halves, halves[::-1]):
        angle = torch.atan2(sin, cos)
        for digits in range(1, 5):
            found = default_frequencies(float(f"{_base(angle):.{digits}g}"), 2 * len(angle))
            if torch.allclose(found, angle, rtol=TOLERANCE):
                yield found, found
                break


def _base(frequencies: torch.Tensor) -> float:
    """The ``theta`` of which these could be the default frequencies."""
    n = 2 * len(frequencies)
    if n == 2 or frequencies[-1] <= 0:
        return 10000.0  # one frequency is 1 whatever the base
    return ((1 / frequencies[-1].double()) ** (n / (n - 2))).item()


def _scale(got: torch.Tensor, x: torch.Tensor, region: Region) -> float:
    """What the tables are multiplied by: seen at position 0, exactly the nearest number in the region."""
    seen = (got[0, :, 0] / x[0, :, 0]).median().item()
    factors = (
        float(a) for n in region.nodes if n.op is ops.mul for a in n.args if isinstance(a, (int, float))
    )
    return min([1.0, *factors], key=lambda c: abs(c - seen))
