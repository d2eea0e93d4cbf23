"""The op: its signature, its meaning, and its kernel."""

from torch import Tensor

from irloom import op
from irloom.backends.cpu import kernel
from irloom.ir.ops import rms_norm, silu_mul


@kernel("gated_rms_norm.cpp")
@op("*b !d, *b !d, !d? -> *b !d")
def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-5,
    groups: int = 1,
    norm_first: bool = False,
) -> Tensor:
    """``rms_norm(silu(gate) * x, weight)``: how a Mamba 2 mixer ends (Dao and Gu, 2024).

    With ``norm_first`` the gate comes last, ``silu(gate) * rms_norm(x, weight)``, as in Gated DeltaNet (Yang
    et al., 2024). With ``groups`` each of that many equal parts of a row is normalized on its own.
    """
    options = {"eps": eps, "groups": groups}
    if norm_first:
        return silu_mul(gate, rms_norm(x, weight, **options))
    return rms_norm(silu_mul(gate, x), weight, **options)


@gated_rms_norm.verify
def _(types, attrs):
    rms_norm.infer(types[:1], {"groups": attrs["groups"], "eps": attrs["eps"]})  # groups divide a row
