"""``raise`` for rotary embeddings: a region of any spelling that a numeric proof shows to be one ``rope``.

Models write the rotation in some twenty ways. All of them combine a query or key with tables computed from
positions and constants. So the region between an attention and the nearest value that everything in it comes
from is cut out, run on random numbers, and compared with ``rope``: half-split or interleaved, for each table
of frequencies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import networkx as nx
import torch

from irloom.ir import ops
from irloom.ir.elem import Elem
from irloom.ir.graph import Arg, Builder, Func, Module, Node, Param, Stmt, Value
from irloom.ir.interp import apply_node
from irloom.ir.ops.attention import default_frequencies
from irloom.ir.weight_expr import Const

from .core import Changes, spend

MOVES = (
    ops.add, ops.sub, ops.mul, ops.neg, ops.cast, ops.reshape, ops.permute, ops.slice_, ops.concat, ops.split,
    ops.expand,
)  # fmt: skip
TOKENS = torch.tensor([0, 1, 2, 3, 17, 100, 1023, 2500], dtype=torch.int32)
"""Positions on which a region is run: the first shows the scale of the tables, where every angle is 0."""

TOLERANCE = 1e-4
SOURCE = "source"
"""Where every way out of a region ends."""


@dataclass(frozen=True)
class Rope:
    """The attributes of a ``rope``. ``freq`` is its operand unless ``theta`` gives the same frequencies."""

    rotary: int | None
    interleaved: bool
    scale: float
    freq: Param | None
    theta: float


class Rotations:
    """The rotations of one function."""

    def __init__(self, m: Module, f: Func) -> None:
        self.module, self.func = m, f
        self.producers = f.producers()
        self.tables = self._tables()
        self.proved: dict[str, Rope | None] = {}

    def run(self) -> Changes:
        changes = Changes()
        if not self.tables:
            return changes
        for n in [n for n in self.func.nodes if n.op is ops.attention]:
            for i, name in enumerate(("q_rope", "k_rope")):
                operand = n.args[i]
                assert isinstance(operand, Value)
                self._operand(operand, name, changes)
        return changes

    def _operand(self, v: Value, name: str, changes: Changes) -> None:
        """Find the region behind one operand of an attention and put a ``rope`` in its place."""
        region = self._region(v)
        if not any(self._rotates(x) for x in region):
            return
        chain = self._chain(v, region)
        for i, end in enumerate(chain):
            for start in chain[i + 1 :]:
                inner = self._between(end, start)
                rope = self._prove(end, start, inner) if inner is not None else None
                if rope is not None:
                    if spend():
                        self._replace(end, start, rope, name)
                        changes.places.append(f"{self.func.name}.{end.name}: a rotation of {start.name}")
                    return
        changes.near_misses.append(f"{self.func.name}.{v.name}: what is done with positions is no rotation")

    def _tables(self) -> dict[Value, None]:
        """Values computed from positions and constants alone, positions included."""
        found: dict[Value, None] = {}
        for n in self.func.nodes:
            if n.op is ops.positions or (
                n.values
                and all(v in found or _const(v) for v in n.values)
                and any(v in found for v in n.values)
            ):
                found.update(dict.fromkeys(n.results))
        return found

    def _node(self, v: Value) -> Node | None:
        s = self.producers.get(v)
        return s if isinstance(s, Node) and s.op in MOVES and v not in self.tables else None

    def _rotates(self, v: Value) -> bool:
        """Whether ``v`` is the product of a table and something else."""
        n = self._node(v)
        return n is not None and n.op is ops.mul and any(x in self.tables for x in n.values)

    def _region(self, v: Value) -> dict[Value, None]:
        """What ``v`` is made of by moves and arithmetic, tables apart; the values where it starts
        included.
        """
        seen: dict[Value, None] = {}
        todo = [v]
        while todo:
            x = todo.pop()
            if x in seen or x in self.tables:
                continue
            seen[x] = None
            n = self._node(x)
            todo += n.values if n else []
        return seen

    def _chain(self, v: Value, region: dict[Value, None]) -> list[Value]:
        """The values that every way from ``v`` to the start of its region passes, nearest first."""
        graph: nx.DiGraph[Value | str] = nx.DiGraph()
        for x in region:
            n = self._node(x)
            inner = [y for y in n.values if y in region] if n else []
            graph.add_edges_from((x, y) for y in inner)
            if not inner:
                graph.add_edge(x, SOURCE)
        above = cast("Callable[[Any, Value], dict[Value | str, Value | str]]", nx.immediate_dominators)(
            graph, v
        )
        chain: list[Value] = []
        at = above[SOURCE]
        while isinstance(at, Value) and at is not v:
            chain.append(at)
            at = above[at]
        return [v, *reversed(chain)]

    def _between(self, end: Value, start: Value) -> list[Node] | None:
        """The nodes that make ``end`` from ``start`` and tables, in order; None if it is made of something
        else.
        """
        needed: dict[Node, None] = {}
        todo = [end]
        while todo:
            x = todo.pop()
            if x is start or _const(x):
                continue
            s = self.producers.get(x)
            if not isinstance(s, Node):
                return None
            if s.op is ops.positions:
                continue
            if self._node(x) is None and x not in self.tables:
                return None
            if s not in needed:
                needed[s] = None
                todo += s.values
        order = {s: i for i, s in enumerate(self.func.body)} if needed else {}
        return sorted(needed, key=lambda s: order[s])

    def _prove(self, end: Value, start: Value, inner: list[Node]) -> Rope | None:
        """The ``rope`` that gives ``end`` from ``start``; None if none of the forms does."""
        t = start.type
        if end.type != t or t.rank != 3 or not isinstance(t.dims[-1], int) or not isinstance(t.dims[-2], int):
            return None
        consts = list(dict.fromkeys(v for n in inner for v in n.values if isinstance(v, Param) and _const(v)))
        key = _signature(inner, start, end)
        if key not in self.proved:
            self.proved[key] = self._search(end, start, inner, consts)
        return self.proved[key]

    def _search(self, end: Value, start: Value, inner: list[Node], consts: list[Param]) -> Rope | None:
        heads, dim = start.type.dims[-2:]
        assert isinstance(heads, int) and isinstance(dim, int)
        x = torch.randn(len(TOKENS), heads, dim, generator=torch.Generator().manual_seed(0))
        got = self._evaluate(end, start, x, inner)
        if got.shape != x.shape:
            return None
        for freq in consts:
            table = self._const(freq)
            if table.ndim != 1 or 2 * len(table) > dim:
                continue
            scale = _scale(got, x, 2 * len(table), inner)
            for interleaved in (False, True):
                rotary = 2 * len(table)
                form = {"rotary": rotary, "interleaved": interleaved, "scale": scale}
                if torch.allclose(ops.rope(x, TOKENS, table, **form), got, rtol=TOLERANCE, atol=TOLERANCE):
                    theta = theta_of(table)
                    whole = None if rotary == dim else rotary
                    operand = freq if theta is None else None
                    return Rope(whole, interleaved, scale, operand, 10000.0 if theta is None else theta)
        return None

    def _evaluate(self, end: Value, start: Value, x: torch.Tensor, inner: list[Node]) -> torch.Tensor:
        """Run a region in f32, whatever it rounds to on the way."""
        frame: dict[Value, torch.Tensor] = {start: x}
        env = {"T": len(TOKENS)}

        def read(a: Arg) -> object:
            if not isinstance(a, Value):
                return a
            if a in frame:
                return frame[a]
            return self._const(a) if isinstance(a, Param) else TOKENS

        for n in inner:
            args = [read(a) for a in n.args]
            to = n.attrs.get("to")
            rounds = n.op is ops.cast and isinstance(to, Elem) and to.kind == "float"
            out = (
                (args[0].float(),)
                if rounds and isinstance(args[0], torch.Tensor)
                else apply_node(n, args, env)
            )
            frame.update(zip(n.results, out, strict=True))
        return frame[end]

    def _const(self, p: Value) -> torch.Tensor:
        assert isinstance(p, Param) and isinstance(p.weight, Const)
        return self.module.consts[p.weight.name]

    def _replace(self, end: Value, start: Value, rope: Rope, name: str) -> None:
        """Put the op where ``end`` was made; what only the region needed is left to be dropped."""
        maker = self.producers[end]
        assert isinstance(maker, Node)
        made: list[Stmt] = []
        with Builder(self.func, made, maker.loc) as build:
            build.name = name
            positions = next(v for v in self.tables if self._made_by_positions(v))
            out = ops.rope(
                start,
                positions,
                rope.freq,
                theta=rope.theta,
                rotary=rope.rotary,
                interleaved=rope.interleaved,
                scale=rope.scale,
            )
        at = self.func.body.index(maker)
        self.func.body[at:at] = made
        self.func.replace_uses({end: out})
        self.producers[out] = made[0]

    def _made_by_positions(self, v: Value) -> bool:
        s = self.producers[v]
        return isinstance(s, Node) and s.op is ops.positions


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


def _const(v: Value) -> bool:
    return isinstance(v, Param) and isinstance(v.weight, Const)


def _scale(got: torch.Tensor, x: torch.Tensor, rotary: int, inner: list[Node]) -> float:
    """What the tables are multiplied by: at position 0 the rotation is that alone. The exact number is in the
    region.
    """
    seen = (got[0, :, 0] / x[0, :, 0]).median().item() if rotary else 1.0
    numbers = [1.0, *_numbers(inner)]
    return min(numbers, key=lambda c: abs(c - seen))


def _numbers(inner: list[Node]) -> Iterator[float]:
    for n in inner:
        if n.op is ops.mul:
            yield from (float(a) for a in n.args if isinstance(a, int | float))


def _signature(inner: list[Node], start: Value, end: Value) -> str:
    """Equal for regions that compute the same from what they start from."""
    name: dict[Value, str] = {start: "x"}
    rows: list[str] = []
    for i, n in enumerate(inner):
        args = [name.get(a, a.name) if isinstance(a, Value) else repr(a) for a in n.args]
        rows.append(f"{n.op.name}({', '.join(args)}; {n.attrs})")
        name.update((r, f"{i}.{j}") for j, r in enumerate(n.results))
    return "\n".join([*rows, name[end], str(start.type)])
