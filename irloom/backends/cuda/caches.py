"""The caches of an engine on the device: pages of keys and values, and slots of states, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from irloom.ir.elem import CACHES, Cached, Paged
from irloom.ir.graph import Module
from irloom.ir.interp import cache_types
from irloom.ir.seqs import PagedCache, StateCache
from irloom.ir.types import Type

AnyCache = PagedCache | StateCache
Caches = dict[str, AnyCache | list[AnyCache]]


def empty_caches(m: Module, pages: Mapping[str, int] | None, device: torch.device | str) -> Caches:
    """Caches of zeros, by parameter of ``main``: one each, or a list for a stack of them.

    ``pages`` of each pool; without it one, for what only looks at types.
    """
    out: Caches = {}
    stack = next((p.name for p in m.main.data if p.type.elem == CACHES), "")
    layers: list[AnyCache] = []
    types = cache_types(m)
    for key in sorted(types, key=lambda k: (isinstance(k, str), k)):
        t = types[key]
        assert isinstance(t.elem, Cached)
        made = _empty(t, pages[t.elem.pool] if pages else 1, device)
        if isinstance(key, str):
            out[key] = made
        else:
            layers.append(made)
    return {**out, stack: layers} if layers else out


def _empty(t: Type, pages: int, device: torch.device | str) -> AnyCache:
    assert isinstance(t.elem, Cached)
    dims, dtype = [d for d in t.dims[1:] if isinstance(d, int)], t.elem.elem.torch
    if not isinstance(t.elem, Paged):
        states = torch.zeros(pages, *dims, dtype=dtype, device=device)
        return StateCache(states, t.elem.every, t.elem.pool, in_place=True)
    heads, dim = dims
    widths = dim, dim if t.elem.values is None else t.elem.values
    k, v = (torch.zeros(pages, t.elem.entries, heads, d, dtype=dtype, device=device) for d in widths)
    return PagedCache(k, v, t.elem.pool, in_place=True, stride=t.elem.stride)
