"""What programs return, token by token: the same keys whether a program saw a text at once or in steps.

A program that keeps nothing computes a whole text in one step, one with caches in several, one may return
logits of every token and another of the last ones only. So each row of an output has a key, its sequence and
position, and two programs are compared where both have a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from irloom.ir.dims import Dim, Sym
from irloom.ir.elem import SEQS
from irloom.ir.graph import Func
from irloom.ir.seqs import PagedCache, Seqs, StateCache
from irloom.ir.types import Type

Key = tuple[int, int]
"""A sequence and a position in it; of what belongs to no token a step and -1."""
Who = tuple[int, int, int]
"""Part of a sequence in a step: its number, how many tokens it has already, how many it brings."""


@dataclass
class Rows:
    """Rows of one output: ``values[i]`` is that of ``keys[i]``."""

    keys: list[Key] = field(default_factory=list[Key])
    parts: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    def add(self, keys: Sequence[Key], values: torch.Tensor) -> None:
        """More rows."""
        self.keys += keys
        self.parts.append(values)

    @property
    def values(self) -> torch.Tensor:
        """All rows in one tensor."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
        return self.parts[0]

    def at(self, keys: Sequence[Key]) -> torch.Tensor:
        """The rows of some keys, in their order."""
        if list(keys) == self.keys:
            return self.values
        place = {k: i for i, k in enumerate(self.keys)}
        chosen = torch.tensor([place[k] for k in keys], device=self.values.device, dtype=torch.long)
        return self.values[chosen]


Table = dict[str, Rows]
"""Rows by output: ``output 0``, ``cache 3 keys``, ``layer 5``."""


@dataclass(frozen=True)
class Taken:
    """A step that a program has taken: who was in it, what went in (None for caches) and what came out."""

    who: list[Who]
    inputs: list[Any]
    outputs: tuple[Any, ...]


def collect(f: Func, steps: Sequence[Taken], lengths: Sequence[int]) -> Table:
    """The rows of what an entry of ``f``'s types returned. Caches are read when a sequence is complete."""
    tokens, count = dims_of(f)
    table: Table = {}
    for at, step in enumerate(steps):
        seqs = next((x for x in step.inputs if isinstance(x, Seqs)), None)
        ends = [(row, s) for row, (s, past, n) in enumerate(step.who) if past + n == lengths[s]]
        plain = cached = 0
        for r, x in zip(f.returns, step.outputs, strict=False):
            if isinstance(x, torch.Tensor):
                keys, values = keyed(r.type, x, step.who, at, tokens, count)
                table.setdefault(f"output {plain}", Rows()).add(keys, values)
                plain += 1
            elif seqs is not None:
                for cache in cast("list[Any]", x) if isinstance(x, list) else [x]:
                    for name, keys, values in _stored(cache, seqs, ends):
                        table.setdefault(f"cache {cached} {name}", Rows()).add(keys, values)
                    cached += 1
    return table


def dims_of(f: Func) -> tuple[Dim, Dim]:
    """The dims of tokens and of sequences in a step; 0 for what the function does not know.

    Where nothing says which tokens are one sequence, rows of the first input count as tokens.
    """
    for p in f.data:
        if p.type.elem == SEQS:
            return p.type.dims[0], p.type.dims[1]
    first = next((p.type.dims[0] for p in f.data if p.type.dims), 0)
    return (first, 0) if isinstance(first, Sym) else (0, 0)


def keyed(
    t: Type, x: torch.Tensor, who: Sequence[Who], step: int, tokens: Dim, count: Dim
) -> tuple[list[Key], torch.Tensor]:
    """A tensor's rows and their keys: one a token, one a sequence (its last token), or all as one."""
    first = t.dims[0] if t.dims else None
    if first == tokens and len(x) == sum(n for _, _, n in who):
        return [(s, past + i) for s, past, n in who for i in range(n)], x
    if first == count and len(x) == len(who):
        return [(s, past + n - 1) for s, past, n in who], x
    return [(step, -1)], x[None]


def _stored(
    cache: Any, seqs: Seqs, ends: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, list[Key], torch.Tensor]]:
    """What a cache holds of the sequences that are complete: (row of the step, sequence)."""
    for row, s in ends:
        match cache:
            case PagedCache():
                k, v = cache.read(seqs, row, 0)
                keys = [(s, i) for i in range(len(k))]
                yield "keys", keys, k
                if v.shape[-1]:
                    yield "values", keys, v
            case StateCache():
                at = seqs.table(cache.pool)[row, (int(seqs.context[row]) - 1) // cache.every]
                yield "state", [(s, -1)], cache.states[int(at)][None]
            case _:
                pass
