"""``raise`` for rotary embeddings, in whatever spelling.

Models write the rotation in some twenty ways. All of them combine a query or key with tables that are
computed from positions and constants. So no spelling is looked for: the region between an attention and the
nearest value that everything in it comes from is cut out, and is a ``rope`` when a numeric proof says so.
"""

from __future__ import annotations

from typing import Any

import networkx

from irloom.ir import ops
from irloom.ir.graph import Builder, Func, Module, Node, Param, Stmt, Value
from irloom.ir.weight_expr import Const

from .core import Changes, spend
from .rope_proof import Region, Rope, prove

MOVES = (
    ops.add, ops.sub, ops.mul, ops.neg, ops.cast, ops.reshape, ops.permute, ops.slice_, ops.concat, ops.split,
    ops.expand,
)  # fmt: skip
"""Ops that a rotation is written with, once its tables are there."""

SOURCE = "source"
"""Where every way out of a region ends."""


class Rotations:
    """The rotations of one function."""

    def __init__(self, m: Module, f: Func) -> None:
        self.module, self.func = m, f
        self.producers = f.producers()
        self.order = {s: i for i, s in enumerate(f.body)}
        self.tables = self._tables()
        self.proved: dict[str, Rope | None] = {}

    def run(self) -> Changes:
        """Put a ``rope`` wherever a query or key is rotated; a region that is none is a near miss."""
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
        reached = self._reached(v)
        if not any(self._rotates(x) for x in reached):
            return
        chain = self._chain(v, reached)
        for i, end in enumerate(chain):
            for start in chain[i + 1 :]:
                region = self._between(end, start)
                rope = self._prove(region) if region else None
                if region and rope:
                    if spend():
                        self._replace(region, rope, name)
                        changes.places.append(f"{self.func.name}.{end.name}: a rotation of {start.name}")
                    return
        changes.near_misses.append(f"{self.func.name}.{v.name}: what is done with positions is no rotation")

    def _tables(self) -> dict[Value, None]:
        """Values computed from positions and constants alone, positions included."""
        found: dict[Value, None] = {}
        for n in self.func.nodes:
            from_tables = any(v in found for v in n.values)
            if n.op is ops.positions or (from_tables and all(v in found or _const(v) for v in n.values)):
                found.update(dict.fromkeys(n.results))
        return found

    def _move(self, v: Value) -> Node | None:
        """The node that makes ``v`` from something else than tables by an op of rotations."""
        s = self.producers.get(v)
        return s if isinstance(s, Node) and s.op in MOVES and v not in self.tables else None

    def _rotates(self, v: Value) -> bool:
        """Whether ``v`` is the product of a table and something else."""
        n = self._move(v)
        return n is not None and n.op is ops.mul and any(x in self.tables for x in n.values)

    def _reached(self, v: Value) -> dict[Value, None]:
        """What ``v`` is made of by moves, tables apart, up to and with the values where they start."""
        seen: dict[Value, None] = {}
        todo = [v]
        while todo:
            x = todo.pop()
            if x in seen or x in self.tables:
                continue
            seen[x] = None
            n = self._move(x)
            todo += n.values if n else []
        return seen

    def _chain(self, v: Value, reached: dict[Value, None]) -> list[Value]:
        """The values that every way from ``v`` to where it starts passes, nearest first."""
        library: Any = networkx
        graph = library.DiGraph()
        for x in reached:
            n = self._move(x)
            inner = [y for y in n.values if y in reached] if n else []
            graph.add_edges_from((x, y) for y in inner or [SOURCE])
        above: dict[Value | str, Value | str] = library.immediate_dominators(graph, v)
        chain: list[Value] = []
        at = above[SOURCE]
        while isinstance(at, Value) and at is not v:
            chain.append(at)
            at = above[at]
        return [v, *reversed(chain)]

    def _between(self, end: Value, start: Value) -> Region | None:
        """The region from ``start`` to ``end``; None if something else than tables enters it."""
        needed: dict[Node, None] = {}
        todo = [end]
        while todo:
            x = todo.pop()
            s = self.producers.get(x)
            if x is start or _const(x) or self._is_positions(x):
                continue
            if not isinstance(s, Node) or (x not in self.tables and self._move(x) is None):
                return None
            if s not in needed:
                needed[s] = None
                todo += s.values
        return Region(start, end, sorted(needed, key=lambda s: self.order[s]))

    def _prove(self, region: Region) -> Rope | None:
        """Every layer's region is the same: one proof serves all."""
        key = region.key
        if key not in self.proved:
            self.proved[key] = prove(region, self.module.consts)
        return self.proved[key]

    def _replace(self, region: Region, rope: Rope, name: str) -> None:
        """Put the op where the region ends; what only the region needed is left to be dropped."""
        maker = self.producers[region.end]
        assert isinstance(maker, Node)
        positions = next(v for v in self.tables if self._is_positions(v))
        made: list[Stmt] = []
        with Builder(self.func, made, maker.loc) as build:
            build.name = name
            form = {
                "theta": rope.theta,
                "rotary": rope.rotary,
                "interleaved": rope.interleaved,
                "scale": rope.scale,
            }
            out = ops.rope(region.start, positions, rope.freq, **form)
        at = self.func.body.index(maker)
        self.func.body[at:at] = made
        self.func.replace_uses({region.end: out})
        self.producers[out] = made[0]
        self.order[made[0]] = self.order[maker]

    def _is_positions(self, v: Value) -> bool:
        s = self.producers.get(v)
        return isinstance(s, Node) and s.op is ops.positions


def _const(v: Value) -> bool:
    return isinstance(v, Param) and isinstance(v.weight, Const)
