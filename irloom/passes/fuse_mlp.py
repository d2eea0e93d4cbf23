"""Run a gated MLP as one linear in, one kernel, one linear out.

``silu(gate) * up`` (or ``gelu``, exact or by ``tanh``) becomes one op, so the activation never touches
memory. Then the linears of gate and up, which read one value, become one with the rows of their weights
joined and a ``split``. Checkpoints that store them joined already come out the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module, Value
from irloom.ir.ops import gelu, gelu_mul, linear, mul, silu, silu_mul, split

from .core import Changes, Pass
from .rewrite import Rewrite, Site, apply
from .siblings import join, join_biases


class FuseSiluMul(Rewrite):
    """``silu(gate) * up``."""

    def match(self, gate: Value, up: Value) -> Value:
        return mul(silu(gate), up)

    def replace(self, gate: Value, up: Value) -> Value:
        return silu_mul(gate, up)


class FuseGeluMul(Rewrite):
    """``gelu(gate) * up``."""

    def match(self, gate: Value, up: Value, *, tanh: bool) -> Value:
        return mul(gelu(gate, tanh=tanh), up)

    def replace(self, gate: Value, up: Value, tanh: bool) -> Value:
        return gelu_mul(gate, up, tanh=tanh)


class JoinGateUp(Rewrite):
    """The two linears in front of ``silu_mul``."""

    def match(self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None) -> Value:
        return silu_mul(linear(x, wg, bg), linear(x, wu, bu))

    def replace(
        self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None, site: Site
    ) -> Value:
        return silu_mul(*_gate_up(site, x, (wg, wu), (bg, bu)))


class JoinGateUpGelu(Rewrite):
    """The two linears in front of ``gelu_mul``."""

    def match(
        self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None, *, tanh: bool
    ) -> Value:
        return gelu_mul(linear(x, wg, bg), linear(x, wu, bu), tanh=tanh)

    def replace(
        self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None, tanh: bool, site: Site
    ) -> Value:
        return gelu_mul(*_gate_up(site, x, (wg, wu), (bg, bu)), tanh=tanh)


def _gate_up(
    site: Site, x: Value, weights: tuple[Value, Value], biases: tuple[Value | None, Value | None]
) -> tuple[Value, Value]:
    weight = join(site, "gate_up_weight", weights)
    bias = join_biases(site, "gate_up_bias", biases)
    both = site.named("gate_up", linear(x, weight, bias))
    gate, up = split(both, dim=-1, sizes=tuple(w.type.dims[0] for w in weights))
    return site.named("gate", gate), site.named("up", up)


@dataclass(frozen=True)
class FuseMlp(Pass):
    """``join``: also make one linear of gate and up (true)."""

    join: bool = True
    after = ("canonicalize", "raise")
    before = ("quantize", "plan-memory")

    def run(self, m: Module) -> Changes:
        changes = apply(m, [FuseSiluMul(), FuseGeluMul()])
        if self.join:
            changes += apply(m, [JoinGateUp(), JoinGateUpGelu()])
        return changes
