"""Store the weights of linears, and of experts, in 8 or 4 bits.

Weight-only, round to nearest: entries of a row are rounded in groups that share a scale, activations stay
as they are. The weight's expression is wrapped in ``quantize(...)`` and its type names the scheme, which
the module header declares; shapes of the scales, bytes and the reference dequantization all follow from
that. Rounding happens tensor by tensor when an engine is built; where the file stores exactly this scheme,
its values are taken as they are.

An embedding table that is also the head (tied) is quantized with it; one of its own only with
``embeddings``. An option says which weights it is for by a pattern that may stand anywhere in a parameter's
name, the names of its tensors, or the module paths of the linears that read it (``lm_head``,
``mlp.*down_proj``), by layers (``0-3``, ``28-``, ``-1`` for the last), or by both (``0-3,-1:down_proj``).
Layers that were outlined into one function and are to differ get functions of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError, PipelineError
from irloom.ir.graph import Func, Module, Node, Param, Stmt
from irloom.ir.op import Op
from irloom.ir.ops import embedding, expert_linear, head_linear, linear, linear_act, moe
from irloom.ir.weight_expr import Quantize as QuantizeExpr

from .core import Changes, NoMatch, Pass, spend
from .near_miss import NearMiss
from .selection import Choices, Layers, names_of
from .split_layers import split_layers

WEIGHTS: dict[Op, tuple[int, ...]] = {
    linear: (1,),
    linear_act: (1,),
    head_linear: (1,),
    embedding: (1,),
    expert_linear: (2,),
    moe: (3, 4),
}
"""The operands that an op takes quantized."""

_BASES = {"int8": ELEMS["i8"], "int4": ELEMS["i4"]}
_BUDGET = {"int8": 0.02, "int4": 0.25}


@dataclass(frozen=True)
class Quantize(Pass):
    """Options.

    ``dtype``: int8 or int4. ``group``: entries of a row that share a scale; 0 for the whole row. ``scale``:
    the element of the scales. ``skip``: weights that stay. ``override``: ``"which=dtype"``, the first that
    matches counts (``override=("lm_head=int8", "0-1=int8")``). ``embeddings``: embedding tables, too.
    """

    dtype: Literal["int8", "int4"] = "int8"
    group: int = 32
    scale: Literal["f16", "bf16", "f32"] = "f16"
    skip: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    embeddings: bool = False
    before = ("plan-memory",)
    lossy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.group < 0:
            raise PipelineError(
                f"quantize: option `group` is {self.group}", hint="entries that share a scale, or 0 for a row"
            )
        for text in self.override:
            which, _, dtype = text.rpartition("=")
            if not which or dtype not in _BASES:
                raise PipelineError(
                    f"quantize: option `override` holds {text!r}", hint='"pattern=dtype": "lm_head=int8"'
                )

    def run(self, m: Module) -> Changes:
        changes, layers = Changes(), Layers.of(m)
        overrides = [(which, dtype) for which, _, dtype in (text.rpartition("=") for text in self.override)]
        choices = Choices[str | None](layers, [*((text, None) for text in self.skip), *overrides], self.dtype)
        wanted = {f.name: self._wanted(f, choices, changes) for f in m.funcs.values()}
        kinds = {
            name: {
                i: tuple((p.name, each[i]) for p, each in of.items()) for i in layers.indices(m.funcs[name])
            }
            for name, of in wanted.items()
        }
        if not any(len(set(of.values())) > 1 for of in kinds.values()) or spend():
            for name, made in split_layers(m, kinds).items():
                for kind, f in made.items():
                    if f.name != name:
                        changes.places.append(f"{f.name}: layers of {name} that differ")
                    params, readers = {p.name: p for p in f.weights}, f.readers()
                    for p, dtype in ((params[name], dtype) for name, dtype in kind if dtype is not None):
                        self._quantize(m, f"{f.name}.{p.name}", p, readers[p], dtype, changes)
        changes.near_misses += choices.unused("weight")
        return changes

    def holds(self, m: Module) -> str | None:
        weights = [p for f in m.funcs.values() for p in f.weights]
        return None if any(isinstance(p.type.elem, Quant) for p in weights) else "no weight is quantized"

    def budget(self) -> float:
        """Of one linear on random weights. A whole model is measured, not tested."""
        return max(_BUDGET[d] for d in (self.dtype, *(o.rpartition("=")[2] for o in self.override)))

    def _wanted(
        self, f: Func, choices: Choices[str | None], changes: Changes
    ) -> dict[Param, dict[int | None, str | None]]:
        """What each weight becomes in each layer that ``f`` is called for, None where it stays."""
        readers, indices = f.readers(), choices.layers.indices(f)
        wanted: dict[Param, dict[int | None, str | None]] = {}
        for p in f.weights:
            try:
                nodes = _nodes(p, readers.get(p, []))
            except NoMatch as e:
                changes.near_misses.append(NearMiss(f"{f.name}.{p.name}", str(e)))
                continue
            plain = isinstance(p.type.elem, Elem) and p.type.elem.kind == "float" and bool(nodes)
            if plain and (self.embeddings or any(n.op is not embedding for n in nodes)):
                wanted[p] = {i: choices.of(names_of(p, nodes, i), i) for i in indices}
        return wanted

    def _quantize(
        self, m: Module, place: str, p: Param, readers: list[Stmt], dtype: str, changes: Changes
    ) -> None:
        quant = _declare(m, self._scheme(dtype))
        try:
            quant.scale_dims(p.type.dims)
        except IRError as e:
            changes.near_misses.append(NearMiss(place, e.message))
            return
        if p.weight is None or not spend():
            return
        for n in readers:
            if isinstance(n, Node) and n.op is embedding and n.attrs["elem"] is None:
                n.attrs["elem"] = p.type.plain
        m.quants[quant.name] = quant
        p.type, p.weight = p.type.with_elem(quant), QuantizeExpr(p.weight, quant)
        changes.places.append(f"{place}: {quant}")

    def _scheme(self, dtype: str) -> Quant:
        base = _BASES[dtype]
        return Quant(
            f"{base}{f'g{self.group}' if self.group else 'row'}", base, self.group, ELEMS[self.scale]
        )


def _nodes(p: Param, readers: Iterable[Stmt]) -> list[Node]:
    """The products and embeddings that read ``p``; ``NoMatch`` if beside them something else does."""
    given = dict.fromkeys(readers)
    nodes = [
        s for s in given if isinstance(s, Node) and _takes(s, [i for i, a in enumerate(s.args) if a is p])
    ]
    others = [s for s in given if s not in nodes]
    if nodes and others:
        raise NoMatch(f"{others[0].results[0].name} reads it, too")
    return nodes


def _takes(n: Node, places: list[int]) -> bool:
    """Whether ``places`` is one operand where the op takes a weight."""
    return len(places) == 1 and places[0] in WEIGHTS.get(n.op, ())


def _declare(m: Module, q: Quant) -> Quant:
    """``q`` under a name that is free in the header or already means it."""
    name, n = q.name, 1
    while m.quants.get(name, replace(q, name=name)) != replace(q, name=name):
        n += 1
        name = f"{q.name}_{n}"
    return replace(q, name=name)
