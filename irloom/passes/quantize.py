"""Store the weights of linears, and of experts, in 8 or 4 bits.

Weight-only, round to nearest: entries of a row are rounded in groups that share a scale, activations stay
as they are. The weight's expression is wrapped in ``quantize(...)`` and its type names the scheme, which
the module header declares; shapes of the scales, bytes and the reference dequantization all follow from
that. Rounding happens tensor by tensor when an engine is built; where the file stores exactly this scheme,
its values are taken as they are.

An embedding table that is also the head (tied) is quantized with it; one of its own only with
``embeddings``. A pattern matches a parameter's name, the names of its tensors, or the module paths of the
linears that read it, anywhere in the name: ``lm_head``, ``mlp.*down_proj``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError, PipelineError
from irloom.ir.graph import Func, Module, Node, Param, Stmt
from irloom.ir.op import Op
from irloom.ir.ops import embedding, expert_linear, head_linear, linear, linear_act, moe
from irloom.ir.weight_expr import Quantize as QuantizeExpr
from irloom.ir.weight_expr import tensor_names

from .core import Changes, NoMatch, Pass, spend
from .layers import split_loc
from .near_miss import NearMiss
from .sample import layer_of

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
    the element of the scales. ``skip``: patterns of weights that stay. ``override``: ``"pattern=dtype"``,
    the first that matches counts (``override="lm_head=int8"``). ``embeddings``: embedding tables, too.
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
            pattern, _, dtype = text.rpartition("=")
            if not pattern or dtype not in _BASES:
                raise PipelineError(
                    f"quantize: option `override` holds {text!r}", hint='"pattern=dtype": "lm_head=int8"'
                )

    def run(self, m: Module) -> Changes:
        changes = Changes()
        for f in m.funcs.values():
            readers = f.readers()
            for p in f.weights:
                try:
                    changes.places += self._weight(m, f, p, readers.get(p, []))
                except NoMatch as e:
                    changes.near_misses.append(NearMiss(f"{f.name}.{p.name}", str(e)))
        return changes

    def holds(self, m: Module) -> str | None:
        weights = [p for f in m.funcs.values() for p in f.weights]
        return None if any(isinstance(p.type.elem, Quant) for p in weights) else "no weight is quantized"

    def budget(self) -> float:
        """Of one linear on random weights. A whole model is measured, not tested."""
        return max(_BUDGET[d] for d in (self.dtype, *(o.rpartition("=")[2] for o in self.override)))

    def _weight(self, m: Module, f: Func, p: Param, readers: list[Stmt]) -> list[str]:
        nodes = _nodes(p, readers)
        if not isinstance(p.type.elem, Elem) or p.type.elem.kind != "float" or not nodes:
            return []
        if not self.embeddings and all(n.op is embedding for n in nodes):
            return []
        dtype = self._dtype(p, nodes, layers(m, f))
        if dtype is None:
            return []
        quant = _declare(m, self._scheme(dtype))
        try:
            quant.scale_dims(p.type.dims)
        except IRError as e:
            raise NoMatch(e.message) from None
        assert p.weight is not None
        if not spend():
            return []
        for n in nodes:
            if n.op is embedding and n.attrs["elem"] is None:
                n.attrs["elem"] = p.type.elem
        m.quants[quant.name] = quant
        p.type, p.weight = p.type.with_elem(quant), QuantizeExpr(p.weight, quant)
        return [f"{f.name}.{p.name}: {quant}"]

    def _scheme(self, dtype: str) -> Quant:
        base = _BASES[dtype]
        return Quant(
            f"{base}{f'g{self.group}' if self.group else 'row'}", base, self.group, ELEMS[self.scale]
        )

    def _dtype(self, p: Param, nodes: list[Node], indices: list[int | None]) -> str | None:
        """What this weight becomes, None to leave it; ``NoMatch`` if the layers of its function differ."""
        assert p.weight is not None
        paths = [split_loc(n.loc)[0] for n in nodes]
        said = {i: self._choice([p.name, *paths, *tensor_names(p.weight, i)]) for i in indices}
        if len(set(said.values())) > 1:
            split = ", ".join(f"{i}: {dtype or 'stays'}" for i, dtype in said.items())
            raise NoMatch(f"its layers differ ({split}): run quantize before outline")
        return next(iter(said.values()))

    def _choice(self, names: Iterable[str]) -> str | None:
        every = list(names)
        if any(_matches(pattern, every) for pattern in self.skip):
            return None
        rules = (text.rpartition("=") for text in self.override)
        return next((dtype for pattern, _, dtype in rules if _matches(pattern, every)), self.dtype)


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, f"*{pattern}*") for name in names)


def layers(m: Module, f: Func) -> list[int | None]:
    """The layer indices that a function is called with."""
    called = [i for c, i, _ in m.calls() if c.callee == f.name] if "main" in m.funcs else []
    return list(dict.fromkeys(called)) or [layer_of(f)]


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
