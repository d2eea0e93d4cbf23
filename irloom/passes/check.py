"""Is a pass right? Run the program before and after it on the same seeded inputs, by reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import PagedCache, StateCache

from .core import Pass
from .sample import BATCHES, Batch, entry, inputs, layer_of, random_weights

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
"""Largest difference as a share of the largest entry, by an output's element. Integers must be equal."""


@dataclass(frozen=True)
class Report:
    """How far the outputs of two programs are apart: the worst output of the worst batch.

    ``max_abs`` is the largest difference of two entries, ``relative`` that as a share of the largest entry,
    ``norm`` the norm of the difference as a share of the output's; ``error`` is the one that counts and
    ``allowed`` its limit.
    """

    max_abs: float
    relative: float
    norm: float
    error: float
    allowed: float
    where: str

    @property
    def ok(self) -> bool:
        """Whether the difference is within the limit."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.where}: error {self.error:.3g}, allowed {self.allowed:.3g} (max abs {self.max_abs:.3g})"
        )


def compare(
    before: Module,
    after: Module,
    p: Pass,
    checkpoint: Checkpoint | None = None,
    batches: Sequence[Batch] = BATCHES,
) -> Report:
    """The worst difference between ``before`` and what ``p`` made of it, over ``batches``.

    Without a ``checkpoint`` weights are seeded random numbers. ``IRError`` when outputs do not correspond.
    """
    weights = checkpoint or random_weights([before, after])
    old, new = Interpreter(before, weights), Interpreter(after, weights)
    rows: list[Report] = []
    for batch in batches:
        given = inputs([before, after], batch)
        first = [given[q.name] for q in entry(before).data]
        want = p.expected(after, first, _run(old, first))
        got = _run(new, [given[q.name] for q in entry(after).data])
        if len(got) < len(want):
            raise IRError(f"{entry(after).name} returns {len(got)} values, {len(want)} are expected")
        for i, (a, b) in enumerate(zip(want, got, strict=False)):
            for x, y in zip(_tensors(a), _tensors(b), strict=True):
                rows.append(_report(x, y, p, f"output {i}, {batch}"))
    return max(
        rows, key=lambda r: r.error / r.allowed if r.allowed else r.error * torch.inf if r.error else 0.0
    )


def _run(program: Interpreter, given: Sequence[Any]) -> tuple[Any, ...]:
    f = entry(program.module)
    return program(*given, func=f.name, layer=layer_of(f))


def _tensors(x: Any) -> Iterator[torch.Tensor]:
    match x:
        case torch.Tensor():
            yield x
        case PagedCache():
            yield from (x.k, x.v)
        case StateCache():
            yield x.states
        case list() | tuple():
            for item in cast("Sequence[Any]", x):
                yield from _tensors(item)
        case _:
            raise IRError(f"an output is {type(x).__name__}, which cannot be compared")


def _report(want: torch.Tensor, got: torch.Tensor, p: Pass, where: str) -> Report:
    if want.shape != got.shape or want.dtype != got.dtype:
        raise IRError(f"{where}: {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}")
    a, b = want.double(), got.double()
    same = (a == b) | (a.isnan() & b.isnan())  # also infinities
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf, posinf=torch.inf)
    size = a[a.isfinite()].abs()
    max_abs = gap.max().item() if gap.numel() else 0.0
    relative = max_abs / (size.max().item() or 1.0) if size.numel() else max_abs
    norm = gap.square().sum().sqrt().item() / (size.square().sum().sqrt().item() or 1.0)
    allowed = TOLERANCE.get(want.dtype, 0.0)
    if p.lossy and want.dtype in TOLERANCE:
        return Report(max_abs, relative, norm, norm, p.budget(), where)
    return Report(max_abs, relative, norm, relative, allowed, where)
