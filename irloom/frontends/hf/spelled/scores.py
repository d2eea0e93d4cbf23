"""What a model does to its scores between the product of queries and keys and the softmax, by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from irloom.frontends.hf.spelled.seen import HIDDEN, Lengths, Seen, classify
from irloom.ir.errors import TraceError

AT = Lengths(6, 5)
STEEP = 1e5
"""A score that any softcap has bent flat."""

Chain = Callable[[Lengths, Callable[[tuple[int, ...]], Tensor]], Tensor]
"""Runs the chain at some lengths on scores that the second argument makes for a shape; f32 [heads, T, S]."""


@dataclass(frozen=True)
class Scores:
    """``softcap(scale * score)`` and what is seen of it."""

    scale: float
    softcap: float | None
    seen: Seen


def understand(chain: Chain, cached: bool, hints: list[int]) -> Scores:
    """Scale, softcap, mask and slopes of a chain of ops on scores, found by running it.

    Raises ``TraceError`` where it is not ``softcap(scale * score) + bias``.
    """
    seen = classify(lambda at: chain(at, torch.zeros), cached, hints)
    at = AT if cached else Lengths(AT.tokens + AT.past, 0)
    generator = torch.Generator().manual_seed(0)
    zero = chain(at, torch.zeros)
    score = torch.randn(zero.shape, generator=generator)
    visible = torch.ones(zero.shape[1:], dtype=torch.bool).tril(zero.shape[2] - zero.shape[1])
    own = (at.past + torch.arange(at.tokens))[None, :, None].expand(len(zero), -1, 1)
    visible = visible & (zero - zero.gather(2, own) > HIDDEN)

    def moved(x: Tensor) -> Tensor:
        return (chain(at, x.reshape) - zero)[visible].double()

    given, small = score[visible].double(), moved(score)
    scale = float((small * given).sum() / (given * given).sum())
    if _close(small, scale * given):
        return Scores(_rounded(scale), None, seen)
    cap = float(moved(torch.full_like(score, STEEP)).median())
    if cap <= 0 or small.abs().max() >= cap:
        raise TraceError("attention changes its scores by more than scale, softcap, mask and bias")
    bent = cap * torch.atanh(small / cap)
    scale = float((bent * given).sum() / (given * given).sum())
    if not _close(small, cap * torch.tanh(scale * given / cap)):
        raise TraceError("attention changes its scores by more than scale, softcap, mask and bias")
    return Scores(_rounded(scale), _rounded(cap), seen)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=2e-4, atol=2e-5 * float(b.abs().max())))


def _rounded(x: float) -> float:
    """``x`` without what f32 added to a number that somebody typed."""
    return float(f"{x:.7g}")
