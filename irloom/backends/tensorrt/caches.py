"""The caches of an engine: memory that steps renew, as networks and as bodies of ops take it.

Networks take slots, ``[slots, KV heads, L, features]``; the same memory with two dims exchanged is what a
body takes, pages that hold a whole sequence. Where the plan has pages, only bodies take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from irloom.ir.elem import Cached, Paged, State
from irloom.ir.graph import Param
from irloom.ir.interp import empty_cache
from irloom.ir.plan import CacheGroup, KVPlan, Pool, page_of
from irloom.ir.seqs import PagedCache, StateCache
from irloom.ir.types import Type

from .program import Program


def slot_plan(plan: KVPlan, length: int) -> KVPlan:
    """The plan of caches whose slots hold ``length`` tokens: those of a sequence, and what pads a step.

    No sequence fills a slot, so that none is kept as a prefix.
    """

    def longer(elem: Cached) -> Cached:
        if isinstance(elem, State):
            return replace(elem, every=length)
        return replace(elem, page=-(-length // elem.stride) * elem.stride)

    groups = list[CacheGroup]()
    for g in plan.groups:
        made = {name: t.with_elem(longer(_cached(t))) for name, t in g.caches.items()}
        groups.append(replace(g, page=page_of(next(iter(made.values()))), caches=made))
    return KVPlan(tuple(groups))


class Caches:
    """Zeros, at first. ``tensors`` go by the names that networks have for them, ``bodies`` by the cache's."""

    def __init__(self, program: Program, pools: Sequence[Pool], length: int, device: torch.device) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.bodies: dict[str, PagedCache | StateCache] = {}
        pages = {pool.name: pool.pages for pool in pools}
        for p in program.module.main.data:
            if isinstance(p.type.elem, Cached):
                made = _make(p, pages[p.type.elem.pool], length if program.linear else None, device)
                self.bodies[p.name] = made
                self.tensors |= _named(p.name, made)


def _make(p: Param, pages: int, length: int | None, device: torch.device) -> PagedCache | StateCache:
    """A cache of zeros, of slots where ``length`` is given."""
    if length is None or not isinstance(p.type.elem, Paged):
        with device:
            made = replace(empty_cache(p.type, pages), in_place=True)
        return replace(made, every=length) if length and isinstance(made, StateCache) else made
    elem, (heads, dim) = p.type.elem, (d for d in p.type.dims[1:] if isinstance(d, int))
    entries = -(-length // elem.stride)
    k, v = (
        torch.zeros(pages, heads, entries, n, dtype=elem.elem.torch, device=device).transpose(1, 2)
        for n in (dim, dim if elem.values is None else elem.values)
    )
    return PagedCache(k, v, elem.pool, in_place=True, stride=elem.stride)


def _named(name: str, cache: PagedCache | StateCache) -> dict[str, torch.Tensor]:
    if isinstance(cache, StateCache):
        return {name: cache.states}
    return {f"{name}.k": cache.k.transpose(1, 2), f"{name}.v": cache.v.transpose(1, 2)}


def _cached(t: Type) -> Cached:
    assert isinstance(t.elem, Cached)
    return t.elem
