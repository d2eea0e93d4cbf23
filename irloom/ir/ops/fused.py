"""Fused ops: ordinary ops whose bodies say what they replace."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..op import op


@op("*b d, *b d -> *b d")
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``: the tail of a gated MLP as one kernel."""
    return F.silu(gate) * up


@op("*b d, *b d -> *b d")
def gelu_mul(gate: Tensor, up: Tensor, *, tanh: bool = False) -> Tensor:
    """``gelu(gate) * up``; ``tanh`` as in ``gelu``."""
    return F.gelu(gate, approximate="tanh" if tanh else "none") * up


@op("*b !d, *b !d, !d -> *b !d, *b !d")
def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, *, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """``s = x + y`` and ``rms_norm(s, weight)``: the step from one block of a residual stream to the next."""
    s = x + y
    h = s.float()
    h = h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return s, (h * weight.float()).to(x.dtype)


@op("*b !d, *b !d, !d, !d? -> *b !d, *b !d")
def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """``s = x + y`` and ``layer_norm(s, weight, bias)``."""
    s = x + y
    f = [None if w is None else w.float() for w in (weight, bias)]
    return s, F.layer_norm(s.float(), s.shape[-1:], f[0], f[1], eps).to(x.dtype)
