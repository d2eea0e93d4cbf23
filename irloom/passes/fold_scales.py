"""Multiply constants and weight vectors into the weights beside them, so that no step multiplies by them.

- A **number** that is multiplied (a residual or embedding multiplier, logits scaling) goes into weight and
  bias of the linear or embedding before it; else into all linears behind it, or into the ``scale`` of the
  attention whose queries or keys it scales. It passes ops that only move entries, and ``rope``.
- A **vector** of weights (LayerScale) goes into the rows of the linear before it, or the columns of all
  linears behind it; so does the weight of an RMSNorm.

Equal in real numbers; in floating point a weight is rounded once more, so outputs move by a few units in the
last place of the element that weights are declared in (checked against the tolerance of that element). No
weight is read: what is multiplied is written down in the weight's expression. A weight that something else
reads, too, stays: a tied embedding is not scaled, since the head would be. Weights that are quantized already
stay, too: ``fold-scales`` comes before ``quantize``.

It is in no default pipeline: a kernel multiplies on the way for nothing, and a weight that a file stores in
two bytes and a program declares in four takes four, once it is multiplied. It is for targets that pay for
each op, and for quantization, which then sees weights as they are applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from irloom.ir import ops
from irloom.ir.elem import Elem
from irloom.ir.graph import Loop, Module, Node, Param, Stmt, Value
from irloom.ir.weight_expr import Affine, Reshape, Scale, WeightExpr

from .core import Changes, NoMatch, Pass, spend
from .draft import Draft
from .fold_weights import rounded
from .near_miss import NearMiss

PASSED = (ops.reshape, ops.permute, ops.expand, ops.slice_, ops.neg, ops.cast, ops.rope)
"""Ops that a number may be multiplied before or after, by their first operand."""

ATTENDS = (ops.attention, ops.paged_attention)


@dataclass(frozen=True)
class FoldScales(Pass):
    """``norms``: fold the weights of norms, too. Kernels that fuse norms want them where they are."""

    norms: bool = True
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "raise")
    before: ClassVar[tuple[str, ...]] = ("fuse-norm", "fuse-epilogue", "quantize", "plan-memory")

    def run(self, m: Module) -> Changes:
        changes = Changes()
        for f in m.funcs.values():
            folder = _Folder(Draft(f), changes)
            for n in f.nodes:
                if n.op in (ops.mul, ops.div) or (self.norms and n.op is ops.rms_norm):
                    folder.fold(n)
            folder.draft.commit()
        return changes


@dataclass(frozen=True)
class Factor:
    """What is multiplied: a number, or a vector of weights along the last dim."""

    number: float = 1.0
    vector: WeightExpr | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{self.number:g}"


@dataclass
class _Home:
    """A node that takes a factor in: in rows or columns of weights, else in the scale of an attention."""

    node: Node
    weights: list[tuple[Param, int]] = field(default_factory=list[tuple[Param, int]])


@dataclass
class _Folder:
    draft: Draft
    changes: Changes

    def fold(self, n: Node) -> None:
        """Fold what ``n`` multiplies with, where there is a home for it."""
        found = _factor(n)
        if found is None:
            return
        x, factor = found
        reasons: list[str] = []
        homes: list[_Home] = []
        for look in (self.before, self.behind) if n.op is not ops.rms_norm else (self.behind,):
            try:
                homes = look(x if look == self.before else n.result, n, factor)
                break
            except NoMatch as e:
                reasons.append(str(e))
        place = f"{self.draft.func.name}.{n.result.name}"
        if not homes:
            self.changes.near_misses.append(NearMiss(place, "; ".join(reasons), loc=n.loc))
            return
        if not spend():
            return
        for home in homes:
            _take(home, factor)
        into = ", ".join(home.node.results[0].name for home in homes)
        self.changes.places.append(f"{place}: {factor} is multiplied into {into}")
        self.remove(n, x)

    def remove(self, n: Node, x: Value) -> None:
        """Take the multiplication out; of a norm its weight."""
        weights = [v for v in n.values if v is not x]
        if n.op is ops.rms_norm:
            n.args = [x]
            for v in weights:
                del self.draft.readers[v][n]
        else:
            carried = any(isinstance(s, Loop) for s in self.draft.readers.get(n.result, {}))
            self.draft.redirect(n.result, x)
            self.draft.remove(n)
            if carried:  # what a loop carries on has one name
                self.draft.rename(x, n.result.name)
        self.draft.drop(weights)

    def before(self, x: Value, reader: Stmt, factor: Factor) -> list[_Home]:
        """The product that makes ``x``, by way of ops that a number may pass."""
        made = self.draft.producer.get(x)
        if list(self.draft.readers.get(x, {})) != [reader] or x in self.draft.returned:
            raise NoMatch(f"{x.name} has another reader")
        if not isinstance(made, Node):
            raise NoMatch(f"nothing before it takes it: {x.name} is given")
        if made.op is ops.linear or (made.op is ops.embedding and factor.vector is None):
            weights = [w for w in made.values if w is not made.args[0]]
            return [_Home(made, [(self.own(w, made), 0) for w in weights])]
        if made.op is ops.embedding:
            return [_Home(made, [(self.own(made.values[1], made), 1)])]
        if made.op in PASSED and factor.vector is None and made.op is not ops.cast:
            return self.before(made.values[0], made, factor)
        raise NoMatch(f"{made.op.name} before it does not take it")

    def behind(self, x: Value, by: Node, factor: Factor) -> list[_Home]:
        """Everything that reads ``x``, where all of it takes the factor."""
        homes: list[_Home] = []
        if x in self.draft.returned:
            raise NoMatch(f"{x.name} is returned")
        for s in self.draft.readers.get(x, {}):
            at = [i for i, a in enumerate(s.args) if a is x] if isinstance(s, Node) else []
            if not isinstance(s, Node) or len(at) != 1:
                what = "is read twice" if isinstance(s, Node) else "goes into a layer"
                raise NoMatch(f"{x.name} {what}")
            if s.op is ops.linear and at == [0]:
                weight = self.own(s.values[1], s)
                homes.append(_Home(s, [(weight, 1)]))
            elif factor.vector is None and s.op in PASSED and s.op is not ops.cast and at == [0]:
                homes += self.behind(s.result, s, factor)
            elif factor.vector is None and s.op in ATTENDS and at[0] <= (s.op is ops.attention):
                homes.append(_Home(s))
            else:
                raise NoMatch(f"{s.op.name} behind it does not take it")
        if not homes:
            raise NoMatch("nothing reads it")
        return homes

    def own(self, w: Value, reader: Node) -> Param:
        """A weight that ``reader`` alone reads, and that is not quantized; ``NoMatch`` else."""
        if not isinstance(w, Param) or w.weight is None:
            raise NoMatch(f"{w.name} is not a weight")
        if not isinstance(w.type.elem, Elem) or rounded(w, w.type.elem) is None:
            raise NoMatch(f"{w.name} is {w.type}")
        if others := [s for s in self.draft.readers[w] if s is not reader]:
            raise NoMatch(f"{w.name} is read by {others[0].results[0].name}, too")
        return w


def _factor(n: Node) -> tuple[Value, Factor] | None:
    """What ``n`` multiplies, and by what; None if that is not how it works."""
    given: list[Any] = [*n.args, None, None]
    if n.op is ops.rms_norm:
        vector = _vector(given[1], given[0])
        return None if vector is None else (given[0], vector)
    first, second = given[:2]
    for x, by in ((first, second), (second, first)):
        if not isinstance(x, Value) or x.type != n.result.type or (n.op is ops.div and x is not first):
            continue
        if isinstance(by, int | float) and not isinstance(by, bool) and by:
            return x, Factor(1 / by if n.op is ops.div else float(by))
        if n.op is ops.mul and (vector := _vector(by, x)):
            return x, vector
    return None


def _vector(by: Any, x: Value) -> Factor | None:
    """A weight with one entry for each of the last dim of ``x``."""
    if not isinstance(by, Param) or by.weight is None or not isinstance(by.type.elem, Elem):
        return None
    n = x.type.dims[-1] if x.type.dims else 1
    if n == 1 or by.type.dims[-1:] != (n,) or any(d != 1 for d in by.type.dims[:-1]):
        return None
    expr = by.weight if by.type.elem.bits >= 32 else rounded(by, by.type.elem)
    if expr is None or not isinstance(n, int):
        return None
    return Factor(1.0, expr if by.type.rank == 1 else Reshape(expr, (n,)), by.name)


def _take(home: _Home, factor: Factor) -> None:
    """Multiply the factor into a home."""
    if not home.weights:
        scale = home.node.attrs["scale"]
        assert isinstance(scale, int | float)
        home.node.attrs["scale"] = scale * factor.number
    for w, dim in home.weights:
        x = rounded(w, w.type.plain)
        assert x is not None
        along = dim if w.type.rank > 1 else 0
        w.weight = Affine(x, factor.number, 0.0) if factor.vector is None else Scale(x, factor.vector, along)
