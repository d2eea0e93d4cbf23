"""``raise`` for rotary embeddings, in whatever spelling.

Models write the rotation in some twenty ways: halves, neighbours, complex numbers, sections for several kinds
of positions, on all features or some, before or after a norm. All of them multiply queries and keys with
tables that are computed from positions and constants. So no spelling is looked for: from what is made of such
a product, the region back to the nearest value that everything in it comes from is cut out, and is a ``rope``
when a numeric proof says so.
"""

from __future__ import annotations

from typing import Any

import networkx
import torch

from irloom.ir import ops
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Func, Module, Node, Param, Stmt, Value
from irloom.ir.types import Type
from irloom.ir.weight_expr import Const

from .core import Changes, spend
from .near_miss import NearMiss
from .region import Cutter, Region, is_const, is_positions
from .rope_proof import Rope, prove

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
        self.cutter = Cutter(f)
        self.tables: dict[Value, None] = {}
        self.fixed: dict[Value, None] = {}
        self._find_tables()
        self.names = self._names()
        self.proved: dict[str, Rope | None] = {}

    def run(self) -> Changes:
        """Put a ``rope`` wherever something is rotated; what is made of tables and is none is a near miss."""
        changes = Changes()
        if self.tables:
            for v in self._rotated():
                self._raise(v, changes)
        self.cutter.commit()
        return changes

    def _find_tables(self) -> None:
        """Values that are computed from positions and constants, or from constants alone (``fixed``)."""
        for n in self.func.nodes:
            known = all(v in self.tables or v in self.fixed or is_const(v) for v in n.values)
            if is_positions(n) or (known and any(v in self.tables for v in n.values)):
                self.tables.update(dict.fromkeys(n.results))
            elif known:
                self.fixed.update(dict.fromkeys(n.results))

    def _names(self) -> dict[Value, str]:
        """What a rotated value is called, by the attention that reads it."""
        found: dict[Value, str] = {}
        for n in self.func.nodes:
            if n.op is ops.attention:
                for v, name in zip(n.values, ("q_rope", "k_rope"), strict=False):
                    found.update(dict.fromkeys(self._reached(v), name))
        return found

    def _rotated(self) -> list[Value]:
        """What products with tables become before anything but a move reads it."""
        readers = self.func.readers()
        inside: dict[Value, None] = {}
        ends: dict[Value, None] = {}
        for n in self.func.nodes:
            if self._is_product(n) or (n.op in MOVES and any(v in inside for v in n.values)):
                inside.update(dict.fromkeys(n.results))
        for v in inside:
            others = [s for s in readers.get(v, []) if not isinstance(s, Node) or s.op not in MOVES]
            if others or v in self.func.returns:
                ends[v] = None
        return list(ends)

    def _raise(self, v: Value, changes: Changes) -> None:
        """Put a ``rope`` for each part of ``v`` that is rotated."""
        todo, seen, found = [v], {v}, False
        while todo:
            end = todo.pop(0)
            reached = self._reached(end)
            if not any(self._is_product(self._move(x)) for x in reached):
                continue
            if self._ends_rotation(end, reached, changes):
                found = True
                continue
            n = self._move(end)
            inner = [x for x in (n.values if n else []) if x not in seen]
            seen.update(inner)
            todo += inner
        if not found:
            reason = "what is done with positions is no rotation"
            changes.near_misses.append(NearMiss(f"{self.func.name}.{v.name}", reason))

    def _ends_rotation(self, end: Value, reached: dict[Value, None], changes: Changes) -> bool:
        """Whether ``end`` is a rotation of one of the values behind it, and then put in as such."""
        for start in self._chain(end, reached):
            region = self._between(end, start)
            rope = self._prove(region) if region else None
            if region and rope:
                if spend():
                    self._replace(region, rope)
                    changes.places.append(f"{self.func.name}.{end.name}: a rotation of {start.name}")
                return True
        return False

    def _move(self, v: Value) -> Node | None:
        """The node that makes ``v`` from something else than tables by an op of rotations."""
        n = self.cutter.node(v)
        return n if n is not None and n.op in MOVES and v not in self.tables else None

    def _is_product(self, n: Node | None) -> bool:
        """Whether a node multiplies a table and something else."""
        if n is None or n.op is not ops.mul or n.result in self.tables:
            return False
        return any(v in self.tables for v in n.values) and len(n.values) == 2

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
        """The values that every way from ``v`` to where it starts passes, nearest first, without ``v``."""
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
        return chain[::-1]

    def _between(self, end: Value, start: Value) -> Region | None:
        """The region from ``start`` to ``end``; None if something else than tables enters it."""

        def inside(n: Node) -> bool:
            known = all(r in self.tables or r in self.fixed for r in n.results)
            return start not in n.results and not is_positions(n) and (known or n.op in MOVES)

        nodes, leaves = self.cutter.behind([end], inside)
        known = (v is start or is_const(v) or is_positions(self.cutter.node(v)) for v in leaves)
        return Region(start, (end,), nodes) if all(known) and start in leaves else None

    def _prove(self, region: Region) -> Rope | None:
        if region.key not in self.proved:
            self.proved[region.key] = prove(region, self.module.consts)
        return self.proved[region.key]

    def _replace(self, region: Region, rope: Rope) -> None:
        """Put the op where the region ends; what only the region needed is left to be dropped."""
        (end,) = region.ends
        maker = self.cutter.node(end)
        assert maker is not None
        positions = next(v for v in self.tables if is_positions(self.cutter.node(v)))
        freq = self._constant(rope.freq) if isinstance(rope.freq, torch.Tensor) else rope.freq
        made: list[Stmt] = []
        with self.cutter.draft.builder(made, maker.loc) as build:
            out = rope.build(region.start, positions, freq, end.type.dims)
            turned = next(s for s in made if isinstance(s, Node) and s.op is ops.rope).result
            turned.name = build.fresh(self.names[end]) if end in self.names else turned.name
        self.cutter.put(made, maker, {end: out})

    def _constant(self, table: torch.Tensor) -> Param:
        """Frequencies that the model does not have as such, such as those of turning backwards."""
        consts = self.module.consts
        name = next((n for n, old in consts.items() if torch.equal(old, table)), "")
        if not name:
            name = next(n for i in range(len(consts) + 1) if (n := f"freq_{i}") not in consts)
            consts[name] = table
        known = (p for p in self.func.weights if p.weight == Const(name))
        if (param := next(known, None)) is None:
            free = self.cutter.draft.builder([], "").fresh(name)
            param = Param(free, Type(ELEMS["f32"], tuple(table.shape)), weight=Const(name))
            self.func.params.append(param)
        return param
