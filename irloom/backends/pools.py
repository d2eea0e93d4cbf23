"""How many pages an engine has: as many sequences as asked for, as far as the memory given to pages reaches."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.backends.core import Limits
from irloom.backends.machine import memory
from irloom.ir.elem import Paged
from irloom.ir.errors import PipelineError, RequestError
from irloom.ir.graph import Module
from irloom.ir.interp import cache_types
from irloom.ir.plan import Pool
from irloom.ir.types import Type


@dataclass(frozen=True)
class Kind:
    """All caches with one window: they share a page table. ``page_bytes`` is one page in all of them."""

    window: int | None
    page: int
    page_bytes: int

    def pages(self, context: int, chunk: int) -> int:
        """Pages that one sequence of ``context`` tokens holds at most, with steps of up to ``chunk`` tokens."""
        reach = context if self.window is None else min(context, self.window + chunk + self.page)
        return -(-reach // self.page)


def kinds(m: Module) -> list[Kind]:
    """The page tables a module needs, full attention first."""
    found: dict[int | None, list[Type]] = {}
    for t in cache_types(m).values():
        assert isinstance(t.elem, Paged)
        found.setdefault(t.elem.window, []).append(t)
    order = sorted(found, key=lambda w: (w is not None, w or 0))
    return [_kind(w, found[w]) for w in order]


def _kind(window: int | None, types: list[Type]) -> Kind:
    elems = [t.elem for t in types if isinstance(t.elem, Paged)]
    sizes = [t.elem.nbytes((1, *t.dims[1:])) for t in types]
    return Kind(window, elems[0].page, sum(s for s in sizes if isinstance(s, int)))


def pools(m: Module, limits: Limits, max_context: int) -> tuple[Pool, ...]:
    """The pools of a module under ``limits``; ``RequestError`` where not even one sequence fits."""
    chunk = limits.max_tokens
    every = kinds(m)
    if not every:
        raise PipelineError(
            f"{m.model}: the program has no cache, so it cannot continue a sequence",
            hint="a pipeline for an engine ends in kv-cache, kv-plan",
        )
    one = [k.pages(max_context, chunk) for k in every]
    each = sum(n * k.page_bytes for n, k in zip(one, every, strict=True))
    given = limits.memory if limits.memory is not None else memory() // 4
    share = min(float(limits.max_seqs), given / max(each, 1))
    counts = [int(n * share) for n in one]
    smallest = [k.pages(min(max_context, 4 * k.page), chunk) for k in every]
    if any(n < least for n, least in zip(counts, smallest, strict=True)):
        raise RequestError(
            f"memory for pages is {given:,} bytes, but one sequence of {max_context} tokens needs {each:,}",
            hint="give more memory, or a smaller max_context",
        )
    rows = zip(every, counts, strict=True)
    return tuple(Pool("full" if k.window is None else f"window {k.window}", k.window, k.page, k.page_bytes, n) for k, n in rows)
