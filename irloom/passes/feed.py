"""What a session feeds a program: tokens and tensors by name, page tables and caches of its own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from irloom.ir.dims import evaluate, symbols
from irloom.ir.elem import CACHES, SEQS
from irloom.ir.graph import Module, Param
from irloom.ir.seqs import PagedCache, Seqs, StateCache

from .rows import Who, dims_of
from .sample import Batch, bound, entry, generator, own_caches, page_tables, random_cache, sizes
from .session import Session

ROWS = (1.0, 0.02, 3.0)
"""How large the rows of an input are, in turn, so that what a norm adds under its root counts."""


class Feed:
    """Inputs for programs that are compared: a parameter of one name gets the same numbers in all of them."""

    def __init__(self, session: Session, device: torch.device | str = "cpu") -> None:
        self.session, self.device = session, torch.device(device)
        self._drawn: dict[str, torch.Tensor] = {}

    @property
    def _batch(self) -> Batch:
        lengths = self.session.lengths
        return Batch(lengths, (0,) * len(lengths), self.session.seed)

    def given(self, m: Module, p: Param, who: Sequence[Who], held: dict[str, Any]) -> Any:
        """The value of a parameter in a step; ``held`` are the caches by now."""
        if p.name in held:
            return held[p.name]
        rows = [s for s, _, _ in who]
        if p.type.elem == SEQS:
            tables = {pool: t[rows] for pool, t in self._tables(m).items()}
            return Seqs.of([n for _, _, n in who], [past for _, past, _ in who], tables).to(self.device)
        tokens, count = dims_of(entry(m))
        first = p.type.dims[0] if p.type.dims else None
        if first == tokens:
            whole = torch.split(self._draw(m, p, sum(self.session.lengths)), list(self.session.lengths))
            return torch.cat([whole[s][past : past + n] for s, past, n in who])
        if first == count:
            return self._draw(m, p, len(self.session.lengths))[rows]
        return self._draw(m, p, None)

    def caches(self, m: Module) -> dict[str, Any]:
        """Caches as a session finds them: pages of numbers that nobody has asked for."""
        stacks = own_caches(m)
        names = {n for types in stacks.values() for t in types for n in symbols(t.dims[0])}
        env = dict.fromkeys(names, max((int(t.max()) + 3 for t in self._tables(m).values()), default=0))
        held: dict[str, Any] = {}
        for p in (p for p in entry(m).data if p.name in stacks):
            made = [
                _to(random_cache(t, env, generator(self.session.seed, p.name, i)), self.device)
                for i, t in enumerate(stacks[p.name])
            ]
            held[p.name] = made if p.type.elem == CACHES else made[0]
        return held

    def _tables(self, m: Module) -> dict[str, torch.Tensor]:
        return page_tables([t for each in own_caches(m).values() for t in each], self._batch)

    def _draw(self, m: Module, p: Param, rows: int | None) -> torch.Tensor:
        """A parameter's values for the whole session."""
        if p.name in self._drawn:
            return self._drawn[p.name]
        seqs = next((q.type for q in entry(m).data if q.type.elem == SEQS), None)
        env = sizes([m], self._batch, seqs, {})
        dims = [evaluate(d, env) for d in p.type.dims]
        dims = dims if rows is None else [rows, *dims[1:]]
        g, elem = generator(self.session.seed, p.name), p.type.plain
        if elem.kind == "float":
            x = torch.randn(dims, generator=g)
            if len(dims) > 1:
                x = x * torch.tensor(ROWS).repeat(dims[0])[: dims[0]].reshape(-1, *[1] * (len(dims) - 1))
        else:
            x = torch.randint(2 if elem.kind == "bool" else bound(entry(m), p), dims, generator=g)
        self._drawn[p.name] = x.to(self.device, elem.torch)
        return self._drawn[p.name]


def renew(held: dict[str, Any], data: Sequence[Param], out: Sequence[Any]) -> None:
    """Caches that were returned take the place of those that were given, in their order."""
    renewed = [cast("Any", x) for x in out if isinstance(x, (PagedCache, StateCache, list))]
    for p, x in zip((p for p in data if p.name in held), renewed, strict=False):
        held[p.name] = x


def _to(cache: PagedCache | StateCache, device: torch.device) -> PagedCache | StateCache:
    if isinstance(cache, StateCache):
        return replace(cache, states=cache.states.to(device))
    return replace(cache, k=cache.k.to(device), v=cache.v.to(device))
