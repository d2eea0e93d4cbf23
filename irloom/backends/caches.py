"""The caches of an engine whose bodies and kernels take them as the interpreter does, renewed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from irloom.ir.elem import CACHES, Cached
from irloom.ir.graph import Module
from irloom.ir.interp import cache_types, empty_cache
from irloom.ir.seqs import PagedCache, StateCache

AnyCache = PagedCache | StateCache
Caches = dict[str, AnyCache | list[AnyCache]]


def empty_caches(m: Module, pages: Mapping[str, int] | None, device: torch.device | str = "cpu") -> Caches:
    """Caches of zeros, by parameter of ``main``: one each, or for a stack of them a list, layer by layer.

    ``pages`` of each pool; without it one, for what only looks at types.
    """
    empty: dict[str | int, AnyCache] = {}
    with torch.device(device):
        for key, t in cache_types(m).items():
            assert isinstance(t.elem, Cached)
            empty[key] = replace(empty_cache(t, pages[t.elem.pool] if pages else 1), in_place=True)
    out: Caches = {k: v for k, v in empty.items() if isinstance(k, str)}
    for p in m.main.data:
        if p.type.elem == CACHES:
            out[p.name] = [empty[i] for i in sorted(k for k in empty if isinstance(k, int))]
    return out
