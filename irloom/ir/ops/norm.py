"""Normalizations over the last dim."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..op import op


@op("*b !d, !d? -> *b !d")
def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Scale each row to unit root-mean-square, then by ``weight`` (Zhang and Sennrich, 2019).

    Computed in f32 and rounded once, at the end.
    """
    h = x.float()
    h = h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return (h if weight is None else h * weight.float()).to(x.dtype)


@op("*b !d, !d?, !d? -> *b !d")
def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Shift rows to zero mean, scale to unit variance, then by ``weight`` and ``bias`` (Ba et al., 2016)."""
    f = [None if w is None else w.float() for w in (weight, bias)]
    return F.layer_norm(x.float(), x.shape[-1:], f[0], f[1], eps).to(x.dtype)
