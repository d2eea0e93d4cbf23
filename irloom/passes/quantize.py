"""Store the weights of linears, and of experts, in 8 or 4 bits; with fp8, round what linears read, too.

Round to nearest: entries of a weight are rounded in groups that share a scale. The weight's expression is
wrapped in ``quantize(...)`` and its type names the scheme, which the module header declares; shapes of the
scales, bytes and the reference dequantization all follow from that. Rounding happens tensor by tensor when an
engine is built; where the file stores exactly this scheme, its values are taken as they are.

int8 and int4 are for weights alone. With fp8 (e4m3, scales in f32) an op ``quantize`` in front of the linears
whose weights are fp8 rounds their rows, with scales that each step finds; all linears that read one value
share it. Experts, and products with a matrix for each head, have their weights rounded alone: a step gives
each few rows, so that reading weights is what they cost. What makes logits stays, as other
fp8 recipes have it, unless an override names it: ``override="lm_head=fp8"``.

An embedding table that is also the head (tied) is quantized with it; one of its own only with
``embeddings``. An option says which weights it is for by a pattern that may stand anywhere in a parameter's
name, the names of its tensors, or the module paths of the linears that read it (``lm_head``,
``mlp.*down_proj``), by layers (``0-3``, ``28-``, ``-1`` for the last), or by both (``0-3,-1:down_proj``).
Layers that were outlined into one function and are to differ get functions of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from irloom.ir.elem import Elem, Quant
from irloom.ir.errors import IRError, PipelineError
from irloom.ir.graph import Func, Module, Node, Param, Stmt
from irloom.ir.op import Op
from irloom.ir.ops import embedding, expert_linear, head_linear, linear, linear_act, moe
from irloom.ir.weight_expr import Quantize as QuantizeExpr

from .core import Changes, NoMatch, Pass, spend
from .near_miss import NearMiss, if_asked
from .quant_schemes import BASES, Activations, Dtype, Schemes, Weights, declare
from .quantize_rows import LINEARS, quantize_rows
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

_BUDGET = {"int8": 0.02, "int4": 0.25, "fp8": 0.08}


@dataclass(frozen=True)
class Quantize(Pass):
    """Options.

    ``dtype``: int8, int4 or fp8. ``skip``: weights that stay. ``override``: ``"which=dtype"``, the first that
    matches counts (``override=("lm_head=int8", "0-1=int8")``). ``embeddings``: embedding tables, too.

    For int8 and int4: ``group``, entries of a row that share a scale, 0 for the whole row (32), and
    ``scale``, the element of the scales (f16).

    For fp8: ``weights`` have a scale for each ``channel``, the output of a linear, one for the ``tensor``, or
    one for each ``block`` of 128 by 128. ``activations`` have one for each ``token``, the ``tensor`` of a
    step (which makes tokens depend on each other) or each ``block`` of 128 entries of a token, or stay
    ``plain``. By default it is a token, and with weights in blocks a block.
    """

    dtype: Dtype = "int8"
    group: int | None = None
    scale: Literal["f16", "bf16", "f32"] | None = None
    skip: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    embeddings: bool = False
    weights: Weights | None = None
    activations: Activations | None = None
    before = ("plan-memory",)
    lossy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 0:
            raise PipelineError(
                f"quantize: option `group` is {self.group}", hint="entries that share a scale, or 0 for a row"
            )
        for text in self.override:
            which, _, dtype = text.rpartition("=")
            if not which or dtype not in BASES:
                raise PipelineError(
                    f"quantize: option `override` holds {text!r}", hint='"pattern=dtype": "lm_head=int8"'
                )
        self._refuse(("group", "scale"), "int8 and int4", self.dtypes == {"fp8"})
        self._refuse(("weights", "activations"), "fp8", "fp8" not in self.dtypes)

    def _refuse(self, options: tuple[str, ...], dtypes: str, absent: bool) -> None:
        """``PipelineError`` for an option that would be ignored in silence."""
        for name in options:
            if absent and getattr(self, name) is not None:
                said = " and ".join(sorted(self.dtypes))
                raise PipelineError(f"quantize: option `{name}` is for {dtypes}, and weights become {said}")

    @property
    def dtypes(self) -> set[str]:
        """All that weights may become."""
        return {self.dtype, *(text.rpartition("=")[2] for text in self.override)}

    @property
    def schemes(self) -> Schemes:
        """What is rounded to, with what is not given filled in."""
        rows: Activations = "block" if self.weights == "block" else "token"
        group = 32 if self.group is None else self.group
        return Schemes(group, self.scale or "f16", self.weights or "channel", self.activations or rows)

    def run(self, m: Module) -> Changes:
        changes, layers = Changes(), Layers.of(m)
        overrides = [(which, dtype) for which, _, dtype in (text.rpartition("=") for text in self.override)]
        choices = Choices[str | None](layers, [*((text, None) for text in self.skip), *overrides], self.dtype)
        head = _head(m)
        wanted = {f.name: self._wanted(f, choices, head, changes) for f in m.funcs.values()}
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
        rows = self.schemes.rows if "fp8" in self.dtypes else None
        for f in m.funcs.values():
            if rows is not None:
                quantize_rows(m, f, rows, changes)
        changes.near_misses += choices.unused("weight")
        return changes

    def holds(self, m: Module) -> str | None:
        weights = [p for f in m.funcs.values() for p in f.weights]
        return None if any(isinstance(p.type.elem, Quant) for p in weights) else "no weight is quantized"

    def budget(self) -> float:
        """Of one linear on random weights. A whole model is measured, not tested."""
        return max(_BUDGET[d] for d in self.dtypes)

    def _wanted(
        self, f: Func, choices: Choices[str | None], head: Param | None, changes: Changes
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
                found = {i: choices.rule(names_of(p, nodes, i), i) for i in indices}
                default = None if p is head and self.dtype == "fp8" else self.dtype
                wanted[p] = {i: rule[1] if rule else default for i, rule in found.items()}
                if default is None and None in found.values():
                    changes.near_misses += if_asked(f"{f.name}.{p.name}", "it makes logits, which fp8 leaves")
        return wanted

    def _quantize(
        self, m: Module, place: str, p: Param, readers: list[Stmt], dtype: str, changes: Changes
    ) -> None:
        quant = declare(m, self.schemes.weight(dtype))
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


def _head(m: Module) -> Param | None:
    """The weight of the linear that makes what ``main`` returns first, but for ops on that value alone."""
    main = m.funcs.get("main")
    producers = main.producers() if main else {}
    v = main.returns[0] if main else None
    while isinstance(n := producers.get(v) if v else None, Node):
        if n.op in WEIGHTS:
            head = n.args[1]
            return head if n.op in LINEARS and isinstance(head, Param) else None
        given = [x for x in n.values if not isinstance(x, Param) or x.weight is None]
        v = given[0] if len(given) == 1 else None
    return None


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
