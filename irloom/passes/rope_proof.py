"""Whether a region is a rotary embedding: run on random numbers, it gives what ``rope`` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from irloom.ir import ops
from irloom.ir.elem import Elem
from irloom.ir.graph import Arg, Node, Param, Value
from irloom.ir.interp import apply_node
from irloom.ir.ops.attention import default_frequencies
from irloom.ir.weight_expr import Const

POSITIONS = torch.tensor([0, 1, 2, 3, 17, 100, 1023, 2500], dtype=torch.int32)
"""Positions on which a region is run: the first shows the scale of the tables, where every angle is 0."""

TOLERANCE = 1e-4
Consts = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Rope:
    """The attributes of a ``rope``. ``freq`` is its operand unless ``theta`` gives the same frequencies."""

    rotary: int | None
    interleaved: bool
    scale: float
    freq: Param | None
    theta: float


@dataclass(frozen=True)
class Region:
    """The nodes, in order, that make ``end`` from ``start``, positions and constants."""

    start: Value
    end: Value
    nodes: list[Node]

    @property
    def frequencies(self) -> list[Param]:
        """Constant vectors that it reads."""
        read = dict.fromkeys(v for n in self.nodes for v in n.values)
        return [v for v in read if isinstance(v, Param) and isinstance(v.weight, Const) and v.type.rank == 1]

    @property
    def key(self) -> str:
        """Equal for regions that compute the same from what they start from."""
        name: dict[Value, str] = {self.start: "x"}
        rows: list[str] = []
        for i, n in enumerate(self.nodes):
            args = [name.get(a, a.name) if isinstance(a, Value) else repr(a) for a in n.args]
            rows.append(f"{n.op.name}({', '.join(args)}; {n.attrs})")
            name.update((r, f"{i}.{j}") for j, r in enumerate(n.results))
        return "\n".join([*rows, name[self.end], str(self.start.type)])


def prove(region: Region, consts: Consts) -> Rope | None:
    """The ``rope`` that gives the end of a region from its start; None if none of the forms does."""
    t = region.start.type
    if region.end.type != t or t.rank != 3:
        return None
    heads, dim = t.dims[1:]
    if not isinstance(heads, int) or not isinstance(dim, int):
        return None
    x = torch.randn(len(POSITIONS), heads, dim, generator=torch.Generator().manual_seed(0))
    got = _run(region, x, consts)
    for freq in region.frequencies if got.shape == x.shape else []:
        table = _const(freq, consts)
        rotary = 2 * len(table)
        if rotary > dim:
            continue
        scale = _scale(got, x, region)
        for interleaved in (False, True):
            turned = ops.rope(x, POSITIONS, table, rotary=rotary, interleaved=interleaved, scale=scale)
            if torch.allclose(turned, got, rtol=TOLERANCE, atol=TOLERANCE):
                theta = theta_of(table)
                operand, base = (freq, 10000.0) if theta is None else (None, theta)
                return Rope(None if rotary == dim else rotary, interleaved, scale, operand, base)
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
    if n == 2:
        return 10000.0  # one frequency is 1 whatever the base
    guess = (1 / table[-1].double()) ** (n / (n - 2))
    for digits in range(1, 9):
        theta = float(f"{guess.item():.{digits}g}")
        if torch.equal(default_frequencies(theta, n), table):
            return theta
    return None


def _run(region: Region, x: torch.Tensor, consts: Consts) -> torch.Tensor:
    """The end of a region, computed in f32 whatever it rounds to on the way."""
    frame: dict[Value, torch.Tensor] = {region.start: x}

    def read(a: Arg) -> object:
        if not isinstance(a, Value):
            return a
        if a in frame:
            return frame[a]
        return _const(a, consts) if isinstance(a, Param) else POSITIONS

    for n in region.nodes:
        args = [read(a) for a in n.args]
        to, first = n.attrs.get("to"), args[0]
        if (
            n.op is ops.cast
            and isinstance(to, Elem)
            and to.kind == "float"
            and isinstance(first, torch.Tensor)
        ):
            frame[n.result] = first.float()
        else:
            frame.update(zip(n.results, apply_node(n, args, {"T": len(POSITIONS)}), strict=True))
    return frame[region.end]


def _const(p: Param, consts: Consts) -> torch.Tensor:
    assert isinstance(p.weight, Const)
    return consts[p.weight.name]


def _scale(got: torch.Tensor, x: torch.Tensor, region: Region) -> float:
    """What the tables are multiplied by: seen at position 0, exactly the nearest number in the region."""
    seen = (got[0, :, 0] / x[0, :, 0]).median().item()
    return min([1.0, *_factors(region.nodes)], key=lambda c: abs(c - seen))


def _factors(nodes: list[Node]) -> Iterator[float]:
    for n in nodes:
        if n.op is ops.mul:
            yield from (float(a) for a in n.args if isinstance(a, int | float))
