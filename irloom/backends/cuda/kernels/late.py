"""Tokens that the host did not know when it sent a step: the step before has sampled them."""

from __future__ import annotations

import torch

from .mode import go_on, options, tl, triton, varying, wait

ROWS = 256


def late_tokens(ids: torch.Tensor, late: torch.Tensor, chosen: torch.Tensor) -> None:
    """``ids[t] = chosen[late[t]]`` wherever ``late[t]`` is not -1; for a broken one any token. All i32."""
    grid = (triton.cdiv(len(ids), ROWS),)
    _late[grid](ids, late, chosen, len(ids), ROWS=ROWS, **options(num_warps=1))


@varying("count")
def _late(ids, late, chosen, count, ROWS: tl.constexpr, CHAIN: tl.constexpr):
    wait(CHAIN)
    go_on(CHAIN)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.load(late + row, mask=row < count, other=-1)
    token = tl.load(chosen + at, mask=at >= 0, other=0)
    tl.store(ids + row, tl.maximum(token, 0), mask=at >= 0)
