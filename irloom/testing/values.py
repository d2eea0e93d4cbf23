"""Values for the operands of a trial, and what came of them in words that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irloom.ir.dims import evaluate
from irloom.ir.elem import SEQS, Cached, Paged, Quant, State, elem_of
from irloom.ir.interp import empty_cache
from irloom.ir.seqs import PagedCache, Seqs, StateCache
from irloom.ir.signature import Operand
from irloom.ir.types import Type

PAGES = 6


@dataclass(frozen=True)
class Batch:
    """How many tokens each of a few new sequences has; a number seeds what is random."""

    lengths: tuple[int, ...]
    seed: int

    @property
    def env(self) -> dict[str, int]:
        """Sizes of the symbols; ``C`` and ``E`` are those in which costs are counted."""
        return {"T": sum(self.lengths), "S": len(self.lengths), "P": PAGES, "C": 4, "E": 2}


BATCHES = (Batch((3, 1), 0), Batch((1,), 1), Batch((2, 1, 4), 2))


def values(operands: Sequence[Operand], batch: Batch) -> list[Any]:
    """A value for each operand. Integers are 1 to 3: indices of anything, and no division by zero."""
    g = torch.Generator().manual_seed(batch.seed)
    pools = [t.elem.pool for t in operands if isinstance(t, Type) and isinstance(t.elem, Cached)]
    rows = len(batch.lengths)
    tables = {
        pool: torch.randperm(PAGES, generator=g)[: PAGES // rows * rows].view(rows, -1).int()
        for pool in sorted(set(pools))
    }
    return [_value(t, batch, tables, g) if isinstance(t, Type) else t for t in operands]


def _value(t: Type, batch: Batch, tables: dict[str, torch.Tensor], g: torch.Generator) -> Any:
    if t.elem == SEQS:
        return Seqs.of(batch.lengths, tables=tables)
    if isinstance(t.elem, Cached):
        return empty_cache(t, PAGES)
    dims = [evaluate(d, batch.env) for d in t.dims]
    if isinstance(t.elem, Quant):
        return torch.randn(dims, generator=g)  # what it dequantizes to
    if t.plain.kind == "float":
        made = torch.randn(dims, generator=g) if batch.seed % 2 else torch.rand(dims, generator=g) * 2 + 1
        return made.to(t.plain.torch)
    return torch.randint(1, 2 if t.plain.kind == "bool" else 4, dims, generator=g).to(t.plain.torch)


def described(x: Any) -> Any:
    """Element and dims of what a body made."""
    if isinstance(x, PagedCache):
        return elem_of(x.k.dtype), x.page, x.pool, x.k.shape[0], *x.k.shape[2:], x.v.shape[3]
    if isinstance(x, StateCache):
        return elem_of(x.states.dtype), x.every, *x.states.shape
    return (elem_of(x.dtype), *x.shape) if isinstance(x, torch.Tensor) else (type(x).__name__,)


def expected(t: Type, env: dict[str, int]) -> Any:
    """The same of what is inferred."""
    dims = [evaluate(d, env) for d in t.dims]
    if isinstance(t.elem, Paged):
        last = dims[-1] if t.elem.values is None else t.elem.values
        return t.elem.elem, t.elem.page, t.elem.pool, *dims, last
    if isinstance(t.elem, State):
        return t.elem.elem, t.elem.every, *dims
    return t.elem, *dims


def show(what: Any) -> str:
    """``f32[3, 8]`` of an element and dims."""
    elem, *dims = what
    return f"{elem}[{', '.join(map(str, dims))}]"


def tensors(x: Any) -> list[torch.Tensor]:
    """All that a value consists of."""
    match x:
        case torch.Tensor():
            return [x]
        case PagedCache():
            return [x.k, x.v]
        case StateCache():
            return [x.states]
        case _:
            return []
