"""What a recurrence over matrices is given: the operands of all its forms, and how they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .mode import kernel, tl


@dataclass(frozen=True)
class Memory:
    """``s = exp(log[t] * rate) * s``, ``s += outer(k[t], weight[t] * u)``, ``y[t] = s . q[t] / divisor[t]``.

    ``u`` is ``v[t]``, with ``delta`` ``v[t] - s . k[t]``. With ``unit`` queries and keys are first brought to
    length 1 (``x / sqrt(sum(x ** 2) + unit)``), queries then times ``scale``; with ``soft`` ``log`` and
    ``weight`` are first ``softplus(x + bias)``; to the result is added ``skip * v[t]``.

    ``out``, ``v`` [T, heads, values], ``q``, ``k`` [T, groups, keys] with one group for some heads in a row
    or for each; ``log`` [T, heads], [T, heads, 1] or [T, heads, keys]; ``rate``, ``bias``, ``skip`` [heads];
    ``weight``, ``divisor`` [T, heads]. Last dims are contiguous. A state is [heads, keys, values +
    ``beside``], or [heads, values, keys].
    """

    out: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    log: torch.Tensor
    rate: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    divisor: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    skip: torch.Tensor | None = None
    soft: bool = False
    unit: float | None = None
    scale: float = 1.0
    delta: bool = False
    values_first: bool = False
    beside: int = 0

    def __post_init__(self) -> None:
        assert all(x.stride(-1) == 1 for x in (self.out, self.q, self.k, self.v))
        assert not self.by_key or self.log.stride(-1) == 1

    @property
    def heads(self) -> int:
        """How many matrices."""
        return self.v.shape[1]

    @property
    def keys(self) -> int:
        """Features of a key."""
        return self.k.shape[2]

    @property
    def values(self) -> int:
        """Features of a value."""
        return self.v.shape[2]

    @property
    def by_key(self) -> bool:
        """Whether each feature of keys decays on its own."""
        return self.log.ndim == 3 and self.log.shape[2] > 1

    @property
    def elem(self) -> torch.dtype:
        """What products of matrices are taken in: the shortest of what is multiplied."""
        return min((x.dtype for x in (self.q, self.k, self.v)), key=lambda dtype: dtype.itemsize)

    @property
    def operands(self) -> tuple[torch.Tensor | None, ...]:
        """As kernels take them."""
        by_head = self.rate, self.bias, self.skip
        return self.out, self.q, self.k, self.v, self.log, *by_head, self.weight, self.divisor

    @property
    def strides(self) -> tuple[int, ...]:
        """How far rows and heads of all but the rate lie apart, of the divisor rows."""
        both = [n for x in (self.out, self.q, self.k, self.v, self.log) for n in x.stride()[:2]]
        weight = self.weight.stride() if self.weight is not None else (0, 0)
        return *both, *weight, self.divisor.stride(0) if self.divisor is not None else 0

    @property
    def sizes(self) -> dict[str, Any]:
        """What kernels are compiled for: sizes, and how far entries of a state lie apart."""
        last = self.keys if self.values_first else self.values + self.beside
        first = self.values if self.values_first else self.keys
        return {
            "K": self.keys, "V": self.values, "SHARED": self.heads // self.k.shape[1], "HEAD": first * last,
            "SK": 1 if self.values_first else last, "SV": last if self.values_first else 1,
            "DELTA": self.delta, "SOFT": self.soft, "UNIT": self.unit, "SCALE": self.scale,
        }  # fmt: skip


@kernel
def by_head(x, h, otherwise: tl.constexpr):
    """Entry ``h``, where there is such an operand."""
    if x is not None:
        return tl.load(x + h).to(tl.float32)
    return otherwise


@kernel
def soft(x, bias, SOFT: tl.constexpr):
    """``softplus(x + bias)``, or ``x``."""
    x = x.to(tl.float32)
    if SOFT:
        x += bias
        x = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))
    return x


@kernel
def unit(x, UNIT: tl.constexpr, axis: tl.constexpr):
    """Vectors along ``axis``, its last, brought to length 1."""
    if UNIT is not None:
        x *= tl.rsqrt(tl.sum(x * x, axis, keep_dims=True) + UNIT)
    return x
