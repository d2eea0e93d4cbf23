"""One parameter for weights that are one, whatever names or expressions lead to it.

- Expressions are brought to a normal form first: slices that meet, parts that are cut as they were joined,
  two transpositions. Parameters of equal expressions and types are then one; so are constants of equal
  contents.
- ``same`` says what a program cannot know: ``same='lm_head.weight=model.embed_tokens.weight'`` reads the
  second tensor wherever the first is named. ``irloom verify`` on the real weights shows whether that is so.

Weights that a model ties need none of this: a checkpoint stores them once and the trace names them once. A
block whose weights do not vary with the layer names them without ``{i}``, and an engine keeps one copy. What
a pass does not do is look: two tensors of a file that happen to hold the same numbers stay two. One tensor
that is read in two elements stays two parameters, too, which is a near miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irloom.ir.errors import PipelineError
from irloom.ir.graph import Func, Module, Param
from irloom.ir.weight_expr import Tensor, WeightExpr, operands, show_weight

from .core import Changes, Pass, spend
from .dedupe import share, share_consts
from .layers import rename_tensors
from .near_miss import NearMiss
from .weight_form import normal


@dataclass(frozen=True)
class DedupeWeights(Pass):
    """``same``: pairs ``"name=name"`` of tensors that hold the same; ``{i}`` as in the program's own text."""

    same: tuple[str, ...] = ()
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "raise")
    before: ClassVar[tuple[str, ...]] = ("plan-memory",)

    def __post_init__(self) -> None:
        for text in self.same:
            if not all(text.partition("=")):
                raise PipelineError(
                    f"dedupe-weights: option `same` holds {text!r}", hint='"lm_head.weight=embed.weight"'
                )

    def run(self, m: Module) -> Changes:
        changes = Changes()
        self._rename(m, changes)
        dims = {p.weight: _dims(p) for f in m.funcs.values() for p in f.weights if p.weight is not None}
        for f in m.funcs.values():
            for p in f.weights:
                assert p.weight is not None
                expr = normal(p.weight, dims)
                if expr != p.weight and spend():
                    changes.places.append(f"{f.name}.{p.name}: {show_weight(expr)}")
                    p.weight = expr
        changes += share_consts(m)
        for f in m.funcs.values():
            changes += share(f)
            changes.near_misses += _twice(f)
        return changes

    def _rename(self, m: Module, changes: Changes) -> None:
        """Read the second tensor of each pair of ``same`` in place of the first."""
        named = {name: p for f in m.funcs.values() for p in f.weights for name in _names(p.weight)}
        for name, _, other in (text.partition("=") for text in self.same):
            for missing in (x for x in (name, other) if x not in named):
                changes.near_misses.append(NearMiss("main", f"no weight reads {missing!r}"))
            if name not in named or other not in named:
                continue
            for f in m.funcs.values():
                for p in (p for p in f.weights if name in _names(p.weight)):
                    if p.weight is not None and spend():
                        p.weight = rename_tensors(p.weight, lambda n, a=name, b=other: b if n == a else n)
                        changes.places.append(f"{f.name}.{p.name}: {other} for {name}")


def _dims(p: Param) -> tuple[int, ...]:
    return tuple(d for d in p.type.dims if isinstance(d, int))


def _names(e: WeightExpr | None) -> list[str]:
    """The names of tensors in an expression, as they are written."""
    if e is None or isinstance(e, Tensor):
        return [e.name] if e else []
    return [name for x in operands(e) for name in _names(x)]


def _twice(f: Func) -> list[NearMiss]:
    """Parameters that differ in their element alone."""
    first: dict[WeightExpr | None, Param] = {}
    found: list[NearMiss] = []
    for p in f.weights:
        old = first.setdefault(p.weight, p)
        if old is not p:
            why = f"{show_weight(p.weight)} is {old.name} in {old.type.elem}" if p.weight else ""
            found.append(NearMiss(f"{f.name}.{p.name}", why))
    return found
