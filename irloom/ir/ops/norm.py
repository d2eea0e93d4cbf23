"""Normalizations over the last dim."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..errors import IRError
from ..op import Attrs, op
from ..signature import Operand
from ..types import Type


@op("*b !d, !d? -> *b !d")
def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5, groups: int = 1) -> Tensor:
    """Scale each row to unit root-mean-square, then by ``weight`` (Zhang and Sennrich, 2019).

    With ``groups`` each of that many equal parts of a row is scaled on its own; the weight is that of the
    row. Computed in f32 and rounded once, at the end.
    """
    h = x.float().reshape(*x.shape[:-1], groups, -1)
    h = (h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).reshape(x.shape)
    return (h if weight is None else h * weight.float()).to(x.dtype)


@op("*b !d, !d?, !d? -> *b !d")
def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    groups: int = 1,
) -> Tensor:
    """Shift rows to zero mean, scale to unit variance, then by ``weight`` and ``bias`` (Ba et al., 2016).

    ``groups`` as in ``rms_norm``.
    """
    w, b = (None if v is None else v.float() for v in (weight, bias))
    if groups == 1:
        return F.layer_norm(x.float(), x.shape[-1:], w, b, eps).to(x.dtype)
    return F.group_norm(x.float().flatten(0, -2), groups, w, b, eps).to(x.dtype).view(x.shape)


@op("*b !d -> *b !d")
def l2_norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Each row over its length, ``x / sqrt(sum(x ** 2) + eps)``: keys and queries of delta rules."""
    h = x.float()
    return (h * (h.pow(2).sum(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _whole_groups(name: str, operands: Sequence[Operand], attrs: Attrs) -> None:
    x, groups = operands[0], attrs["groups"]
    if not isinstance(groups, int) or groups < 1:
        raise IRError(f"{name}: groups is {groups}", hint="at least 1")
    d = x.dims[-1] if isinstance(x, Type) and x.dims else groups
    if isinstance(d, int) and d % groups:
        raise IRError(f"{name}: {groups} groups do not divide the {d} features of {x}")


rms_norm.verify(lambda operands, attrs: _whole_groups("rms_norm", operands, attrs))
layer_norm.verify(lambda operands, attrs: _whole_groups("layer_norm", operands, attrs))
