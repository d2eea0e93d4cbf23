"""Run a gated MLP as one linear in, one kernel, one linear out.

``silu(gate) * up`` (or ``gelu``, or any other activation, clamped or not) becomes one op, so the activation
never touches memory. Then the linears of gate and up, which read one value, become one with the rows of their
weights joined and a ``split``. Checkpoints that store them joined already come out the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module, Value
from irloom.ir.op import Op
from irloom.ir.ops import (
    act_mul,
    add,
    clamped_silu_mul,
    gelu,
    gelu_mul,
    linear,
    maximum,
    minimum,
    mish,
    mul,
    quick_gelu,
    relu,
    relu2,
    sigmoid,
    silu,
    silu_mul,
    softplus,
    split,
    tanh,
)
from irloom.ir.signature import Literal

from .core import Changes, NoMatch, Pass
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


@dataclass(frozen=True)
class FuseActMul(Rewrite):
    """A product with another activation: gates of attention and of shared experts too."""

    act: Op
    quiet = True

    def match(self, gate: Value, x: Value) -> Value:
        return mul(self.act(gate), x)

    def replace(self, gate: Value, x: Value) -> Value:
        return act_mul(gate, x, act=self.act.name)


class FuseClampedSiluMul(Rewrite):
    """``silu(gate) * up`` of clamped values."""

    quiet = True

    def match(self, gate: Value, up: Value, low: Literal, limit: Literal) -> Value:
        return mul(silu(minimum(gate, limit)), minimum(maximum(up, low), limit))

    def where(self, low: Literal, limit: Literal) -> None:
        _around_zero(low, limit)

    def replace(self, gate: Value, up: Value, limit: Literal) -> Value:
        return clamped_silu_mul(gate, up, limit=limit)


class FuseClampedSwiGlu(Rewrite):
    """The gate of gpt-oss: ``quick_gelu(gate) * (up + 1)`` of clamped values."""

    quiet = True

    def match(self, gate: Value, up: Value, low: Literal, limit: Literal, shift: Literal) -> Value:
        return mul(quick_gelu(minimum(gate, limit)), add(minimum(maximum(up, low), limit), shift))

    def where(self, low: Literal, limit: Literal) -> None:
        _around_zero(low, limit)

    def replace(self, gate: Value, up: Value, limit: Literal, shift: Literal) -> Value:
        return clamped_silu_mul(gate, up, limit=limit, alpha=1.702, shift=shift)


def _around_zero(low: Literal, limit: Literal) -> None:
    if low != -limit:
        raise NoMatch(f"one is clamped to {low} and {limit}")


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


class JoinGateUpAct(Rewrite):
    """The two linears in front of ``act_mul``."""

    quiet = True

    def match(self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None, *, act: str) -> Value:
        return act_mul(linear(x, wg, bg), linear(x, wu, bu), act=act)

    def replace(
        self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None, act: str, site: Site
    ) -> Value:
        return act_mul(*_gate_up(site, x, (wg, wu), (bg, bu)), act=act)


class JoinGateUpClamped(Rewrite):
    """The two linears in front of ``clamped_silu_mul``."""

    quiet = True

    def match(
        self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None, *,
        limit: float, alpha: float, shift: float,
    ) -> Value:  # fmt: skip
        gate, up = linear(x, wg, bg), linear(x, wu, bu)
        return clamped_silu_mul(gate, up, limit=limit, alpha=alpha, shift=shift)

    def replace(
        self, x: Value, wg: Value, wu: Value, bg: Value | None, bu: Value | None,
        limit: float, alpha: float, shift: float, site: Site,
    ) -> Value:  # fmt: skip
        gate, up = _gate_up(site, x, (wg, wu), (bg, bu))
        return clamped_silu_mul(gate, up, limit=limit, alpha=alpha, shift=shift)


def _gate_up(
    site: Site, x: Value, weights: tuple[Value, Value], biases: tuple[Value | None, Value | None]
) -> tuple[Value, Value]:
    weight = join(site, "gate_up_weight", weights)
    bias = join_biases(site, "gate_up_bias", biases)
    both = site.named("gate_up", linear(x, weight, bias))
    gate, up = split(both, dim=-1, sizes=tuple(w.type.dims[0] for w in weights))
    return site.named("gate", gate), site.named("up", up)


RULES = (
    FuseClampedSiluMul(),
    FuseClampedSwiGlu(),
    FuseSiluMul(),
    FuseGeluMul(),
    *(FuseActMul(act) for act in (relu, relu2, quick_gelu, mish, sigmoid, tanh, softplus)),
)


@dataclass(frozen=True)
class FuseMlp(Pass):
    """``join``: also make one linear of gate and up (true)."""

    join: bool = True
    after = ("canonicalize", "raise")
    before = ("quantize", "plan-memory")

    def run(self, m: Module) -> Changes:
        changes = apply(m, RULES)
        if self.join:
            changes += apply(m, [JoinGateUp(), JoinGateUpGelu(), JoinGateUpAct(), JoinGateUpClamped()])
        return changes
