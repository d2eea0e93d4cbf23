"""Write ops that a target has no kernel or layer for in simpler ops.

Model ops and fused ops mean something that a few tensor ops say as well: ``mish(x)`` is
``x * tanh(softplus(x))``, a mixture of experts is two products over all experts and a choice. Targets that
build a network of a library's own layers, as TensorRT and ONNX do, so need layers for few ops; what such a
library has a fast layer for is kept. A rule may leave an op that has a rule of its own. Where a body computes
in f32, what takes its place does too, and rounds once.

What goes through the tokens of a sequence (attention, recurrent ops, convolutions) has no rule: which rows
belong together is in ``seqs``, and no tensor op reads that.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from irloom.ir.errors import PipelineError
from irloom.ir.graph import Module
from irloom.ir.op import OPS

from .core import Changes, Pass
from .decompose_activation import ACTIVATION_RULES
from .decompose_elementwise import ELEMENTWISE_RULES
from .decompose_experts import DENSE_RULES, GATHERED_RULES, UnfuseMoe
from .decompose_norm import GROUP_RULES, NORM_RULES
from .decompose_product import PRODUCT_RULES
from .decompose_rope import ROPE_RULES
from .decompose_router import ROUTER_RULES
from .pattern import Pattern
from .rewrite import Rewrite, apply

RULES = (
    *ELEMENTWISE_RULES, *ACTIVATION_RULES, *NORM_RULES, *PRODUCT_RULES, *ROPE_RULES, *ROUTER_RULES
)  # fmt: skip
EXPERTS: dict[str, tuple[Rewrite, ...]] = {"dense": DENSE_RULES, "gathered": GATHERED_RULES}


def op_of(rule: Rewrite) -> str:
    """The name of the op that a rule is for."""
    return Pattern.trace(rule.match, type(rule).__name__).anchor.node.op.name


DECOMPOSED = tuple(sorted({op_of(r) for r in (*RULES, *DENSE_RULES)}))
"""The ops that have a rule."""


@dataclass(frozen=True)
class Decompose(Pass):
    """Options.

    ``keep``: ops that stay, those that the target has. ``ops``: only these are decomposed, by default every
    op that has a rule. A norm that is kept still comes to have one group a row.

    ``experts``: ``dense`` applies all experts to all tokens, in two plain products (``gathered``: each token
    reads the weights of those that it chose, which is less work for few tokens and far more memory for many).
    Where ``expert_linear`` is kept, ``moe`` becomes that.
    """

    keep: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    experts: Literal["dense", "gathered"] = "dense"
    after = (
        "raise", "raise-block", "raise-rope", "raise-router", "absorb-mla",
        "fuse-qkv", "fuse-mlp", "fuse-moe", "fuse-norm", "fuse-epilogue", "fuse-rope-append",
    )  # fmt: skip
    before = ("quantize", "plan-memory")

    def __post_init__(self) -> None:
        for option, names in (("keep", self.keep), ("ops", self.ops)):
            for name in names:
                _known(option, name)

    def run(self, m: Module) -> Changes:
        experts = (UnfuseMoe(),) if "expert_linear" in self.keep else EXPERTS[self.experts]
        chosen = [r for r in (*RULES, *experts) if self._wanted(op_of(r)) and op_of(r) not in self.keep]
        return apply(m, [*(r for r in GROUP_RULES if self._wanted(op_of(r))), *chosen])

    def _wanted(self, op: str) -> bool:
        return not self.ops or op in self.ops


def _known(option: str, name: str) -> None:
    """``PipelineError`` for what is no op, or is to be decomposed and has no rule."""
    if option == "keep" and OPS.find(name) is None:
        near = get_close_matches(name, [o.name for o in OPS], 1)
        hint = f"did you mean {near[0]!r}?" if near else "`irloom op` lists them"
        raise PipelineError(f"decompose: option `keep` names {name!r}, which is no op", hint=hint)
    if option == "ops" and name not in DECOMPOSED:
        near = get_close_matches(name, DECOMPOSED, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is one for {', '.join(DECOMPOSED)}"
        raise PipelineError(f"decompose: option `ops` names {name!r}, which has no rule", hint=hint)
