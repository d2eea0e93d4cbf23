"""``raise`` for routers, in whatever spelling: which experts a token chooses, and with what weights.

Models score experts by softmax or sigmoid, before or after they choose, from all or from the best groups,
with or without a bias, and then normalize and scale. What lies between the logits and the numbers and weights
that experts are applied with is cut out, and is a ``route`` when it chooses and weighs as one does.
"""

from __future__ import annotations

from collections.abc import Iterator

from irloom.ir import ops
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Func, Module, Node, Param, Stmt, Value

from .core import Changes, spend
from .near_miss import NearMiss
from .region import Cutter, Region
from .router_proof import Form, biases_of, prove

ROUTING = (
    ops.softmax, ops.sigmoid, ops.softplus, ops.sqrt, ops.exp, ops.log, ops.add, ops.sub, ops.mul, ops.div,
    ops.log1p, ops.neg, ops.abs_, ops.reciprocal, ops.sum_, ops.mean, ops.amax, ops.amin, ops.maximum,
    ops.minimum, ops.topk, ops.argmax, ops.gather, ops.scatter, ops.reshape, ops.expand, ops.cast, ops.where,
    ops.full, ops.logical_not, ops.eq, ops.ne, ops.gt, ops.ge, ops.lt, ops.le, ops.slice_, ops.split,
    ops.concat,
)  # fmt: skip
"""Ops that a router is written with."""


class Routers:
    """The routers of one function."""

    def __init__(self, m: Module, f: Func) -> None:
        self.module, self.func = m, f
        self.cutter = Cutter(f)
        self.readers = f.readers()
        self.proved: dict[str, Form | None] = {}

    def run(self) -> Changes:
        """Put a ``route`` before experts that are chosen by one; other choices are near misses."""
        changes = Changes()
        chosen = [n.args[1] for n in self.func.nodes if n.op is ops.expert_linear]
        for index in dict.fromkeys(v for v in chosen if isinstance(v, Value)):
            n = self.cutter.node(index)
            if n is not None and n.op in ROUTING:
                self._raise(index, changes)
        self.cutter.commit()
        return changes

    def _raise(self, index: Value, changes: Changes) -> None:
        place = f"{self.func.name}.{index.name}"
        _, leaves = self.cutter.behind([index], lambda n: n.op in ROUTING)
        logits = [v for v in leaves if not isinstance(v, Param)]
        if len(logits) != 1:
            reason = f"experts are chosen by {len(logits)} values, not by logits"
            changes.near_misses.append(NearMiss(place, reason))
            return
        for region in self._regions(logits[0], index):
            found = self._prove(region)
            if found is not None:
                if spend():
                    self._replace(region, found)
                    changes.places.append(f"{place}: a route by {logits[0].name}")
                return
        changes.near_misses.append(NearMiss(place, "experts are chosen or weighed in no way of a route"))

    def _regions(self, logits: Value, index: Value) -> Iterator[Region]:
        """From the logits to ``index`` and what may be its weights, those that most is done to first."""
        for weights in reversed(self._made(logits)):
            if weights.type.dims == index.type.dims and weights.type.plain.kind == "float":
                nodes, leaves = self.cutter.behind([weights, index], lambda n: logits not in n.results)
                if logits in leaves and all(v is logits or isinstance(v, Param) for v in leaves):
                    yield Region(logits, (weights, index), nodes)

    def _made(self, logits: Value) -> list[Value]:
        """What is made of logits, weights and fills alone, in order."""
        made: dict[Value, None] = {logits: None}
        todo = [logits]
        while todo:
            for s in self.readers.get(todo.pop(), []):
                known = all(v in made or isinstance(v, Param) or self._filled(v) for v in s.values)
                if isinstance(s, Node) and s.op in ROUTING and known and s.results[0] not in made:
                    made.update(dict.fromkeys(s.results))
                    todo += s.results
        found = [v for v in made if v is not logits]
        return sorted(found, key=lambda v: self.cutter.draft.place(self.cutter.draft.producer[v]))

    def _filled(self, v: Value) -> bool:
        """Whether a value is made of nothing, wherever that happened."""
        n = self.cutter.node(v)
        return n is not None and n.op is ops.full

    def _prove(self, region: Region) -> Form | None:
        if region.key not in self.proved:
            self.proved[region.key] = prove(region, self.module.consts)
        return self.proved[region.key]

    def _replace(self, region: Region, form: Form) -> None:
        weights, index = region.ends
        makers = [n for v in region.ends if (n := self.cutter.node(v)) is not None]
        first = min(makers, key=self.cutter.draft.place)
        made: list[Stmt] = []
        draft = self.cutter.draft
        with draft.builder(made, first.loc) as build:
            logits = region.start
            if logits.type.elem != ELEMS["f32"]:
                logits = ops.cast(logits, to=ELEMS["f32"])
            given = ops.route(logits, *biases_of(region), **form)
            for v, name in zip(given, ("weights", "experts"), strict=True):
                draft.rename(v, build.fresh(name))
            new = [
                v if v.type.elem == old.type.elem else ops.cast(v, to=old.type.plain)
                for v, old in zip(given, (weights, index), strict=True)
            ]
        self.cutter.put(made, first, dict(zip((weights, index), new, strict=True)))
