"""Run a gate and the RMSNorm next to it as one op: ``gated_rms_norm``.

State-space and linear-attention layers end so: Mamba 2, Bamba, Nemotron-H and Granite 4 gate before they
normalize, Qwen3-Next and Kimi Linear normalize before they gate. The gated row then never touches memory.
"""

from dataclasses import dataclass

from gated_norm.gated_rms_norm import gated_rms_norm
from irloom import Pass, Rewrite, apply
from irloom.ir.ops import rms_norm, silu_mul


class GateThenNorm(Rewrite):
    """``rms_norm(silu(gate) * x)``."""

    def match(self, x, gate, weight, *, eps, groups):
        return rms_norm(silu_mul(gate, x), weight, eps=eps, groups=groups)

    def replace(self, x, gate, weight, eps, groups):
        return gated_rms_norm(x, gate, weight, eps=eps, groups=groups)


class NormThenGate(Rewrite):
    """``silu(gate) * rms_norm(x)``."""

    def match(self, x, gate, weight, *, eps, groups):
        return silu_mul(gate, rms_norm(x, weight, eps=eps, groups=groups))

    def replace(self, x, gate, weight, eps, groups):
        return gated_rms_norm(x, gate, weight, eps=eps, groups=groups, norm_first=True)


@dataclass(frozen=True)
class FuseGatedNorm(Pass):
    """It has no options."""

    targets = ("cpu",)
    after = ("fuse-mlp",)  # which makes `silu_mul`
    before = ("plan-memory",)

    def run(self, m):
        return apply(m, [GateThenNorm(), NormThenGate()])
