"""``raise`` for activations, in whatever spelling: arithmetic on one value and numbers, proved by its values.

GELU alone has half a dozen formulas in the libraries. All are functions of one entry, so the region between
a value and what is made of it and of numbers alone is run on a row of numbers and compared with each
activation that is an op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from irloom.ir import ops
from irloom.ir.graph import Func, Module, Node, Stmt, Value

from .core import Changes, spend
from .draft import op_of
from .near_miss import NearMiss
from .region import Cutter, Region

ARITHMETIC = (
    ops.add, ops.sub, ops.mul, ops.div, ops.neg, ops.pow_, ops.exp, ops.tanh, ops.erf, ops.sigmoid,
    ops.softplus, ops.relu, ops.maximum, ops.minimum, ops.where, ops.gt, ops.ge, ops.lt, ops.le, ops.abs_,
    ops.sqrt, ops.rsqrt, ops.reciprocal, ops.log, ops.expm1, ops.log1p, ops.cast,
)  # fmt: skip
"""Ops that an activation is written with."""

CURVED = (ops.tanh, ops.erf, ops.sigmoid, ops.exp)
"""Those without which nothing is an activation that a person would call so."""

INPUTS = torch.linspace(-12, 12, 481)
LONGEST = 16
"""Nodes of the longest formula that is looked at."""

SCALE = 1e-5
"""How far values may be apart, as a share of the input or of 1."""


@dataclass(frozen=True)
class Activation:
    """An op that is a function of one entry."""

    name: str
    apply: Callable[[Any], Any]


KNOWN = (
    Activation("silu", ops.silu),
    Activation("gelu", ops.gelu),
    Activation("gelu, by tanh", lambda x: ops.gelu(x, tanh=True)),
    Activation("quick_gelu", ops.quick_gelu),
    Activation("relu2", ops.relu2),
    Activation("mish", ops.mish),
)


class Activations:
    """The activations of one function."""

    def __init__(self, m: Module, f: Func) -> None:
        self.module, self.func = m, f
        self.cutter = Cutter(f)
        self.roots = self._roots()
        self.proved: dict[str, Activation | None] = {}

    def run(self) -> Changes:
        """Put an op wherever one value becomes its activation; curves that are none are near misses."""
        changes = Changes()
        readers = self.func.readers()
        for v, root in list(self.roots.items()):
            inner = [s for s in readers.get(v, []) if any(self.roots.get(r) is root for r in s.results)]
            if len(inner) < len(readers.get(v, [])) or v in self.func.returns:
                self._end(v, root, changes)
        self.cutter.commit()
        return changes

    def _roots(self) -> dict[Value, Value]:
        """For what is made of one value and numbers, that value: as far back as it goes."""
        roots: dict[Value, Value] = {}
        for n in self.func.nodes:
            from_ = {roots.get(v, v) for v in n.values}
            if n.op in ARITHMETIC and len(from_) == 1:
                roots[n.result] = from_.pop()
        return roots

    def _end(self, v: Value, root: Value, changes: Changes) -> None:
        nodes, _ = self.cutter.behind([v], lambda n: root not in n.results)
        if len(nodes) > LONGEST:
            return
        for region in self._regions(nodes, root):
            found = self._prove(region)
            if found is not None:
                if spend():
                    self._replace(region, found)
                    changes.places.append(f"{self.func.name}.{region.ends[0].name}: {found.name}")
                return
        if len(nodes) > 2 and any(n.op in CURVED for n in nodes):
            reason = f"a curve of {root.name} that is no activation"
            changes.near_misses.append(NearMiss(f"{self.func.name}.{v.name}", reason))

    def _regions(self, nodes: list[Node], root: Value) -> Iterator[Region]:
        """Every part of the nodes that makes one of their values of another, the largest first."""
        values = [root, *(n.result for n in nodes)]
        for n in reversed(nodes):
            for start in values[: values.index(n.result)]:
                inner, leaves = self.cutter.behind([n.result], lambda n, s=start: s not in n.results)
                if list(leaves) == [start] and set(inner) <= set(nodes) and start.type == n.result.type:
                    yield Region(start, (n.result,), inner)

    def _prove(self, region: Region) -> Activation | None:
        if region.key not in self.proved:
            self.proved[region.key] = next((a for a in KNOWN if _equal(region, a)), None)
        return self.proved[region.key]

    def _replace(self, region: Region, found: Activation) -> None:
        (end,) = region.ends
        maker = self.cutter.node(end)
        assert maker is not None
        made: list[Stmt] = []
        with self.cutter.draft.builder(made, maker.loc):
            out = found.apply(region.start)
        self.cutter.put(made, maker, {end: out})
        if op_of(end.name) is None:
            out.name, end.name = end.name, out.name


def _equal(region: Region, a: Activation) -> bool:
    """Whether a region gives what an activation gives, and is not that op already."""
    if len(region.nodes) == 1 and region.nodes[0].op.name == a.name:
        return False
    got = region.run({region.start: INPUTS}, {}, 1)[region.ends[0]]
    wanted: torch.Tensor = a.apply(INPUTS)
    return bool(((got - wanted).abs() <= SCALE * INPUTS.abs().clamp(min=1)).all())
