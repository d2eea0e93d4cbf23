"""Is a pass right? Run the program before and after it on the same seeded inputs, by reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import PagedCache, StateCache

from .core import Pass
from .report import Report, report
from .sample import BATCHES, Batch, entry, inputs, layer_of, random_weights

__all__ = ["Report", "compare"]


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
    return max(rows, key=lambda r: r.excess)


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
    return report(want, got, where, budget=p.budget())
