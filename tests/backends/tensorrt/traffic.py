"""Random traffic over slots: a network's steps beside the bodies of its ops, on caches of both kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from irloom.backends.slots import Slots, SlotStep, length
from irloom.backends.tensorrt.forms import value_of
from irloom.backends.tensorrt.library import Kernels
from irloom.backends.tensorrt.lower import lower
from irloom.backends.tensorrt.program import Segment
from irloom.ir.elem import Elem, Paged
from irloom.ir.graph import Module, Param, Value
from irloom.ir.interp import apply_node, bound_value, empty_cache
from irloom.ir.parse import parse
from irloom.ir.seqs import PagedCache, Seqs
from irloom.passes.random_weights import RandomWeights
from irloom.runtime.core import Batch

CONTEXT, SLOTS, ROWS = 24, 5, 12
HEADER = f"# irloom 1\nT: dim[1, {ROWS}]; S: dim[1, {SLOTS}]; P: dim[1, {SLOTS}]\n"


def module(text: str) -> Module:
    """A module of ``main`` alone, whose caches lie in slots of ``CONTEXT`` tokens."""
    return parse(HEADER + text)


def batches(seed: int, count: int) -> Iterator[Batch]:
    """Steps in which some slots bring a token, some a chunk, some nothing; full ones begin again."""
    rng = np.random.default_rng(seed)
    past = np.zeros(SLOTS, np.int32)
    for _ in range(count):
        slots = rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)]
        new = np.where(rng.random(len(slots)) < 0.5, 1, rng.integers(1, 6, len(slots))).astype(np.int32)
        while new.sum() > ROWS:
            new[new.argmax()] -= 1
        past[slots] = np.where(past[slots] + new > CONTEXT, 0, past[slots])
        starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        at = [past[s] + np.arange(n) for s, n in zip(slots, new, strict=True)]
        past[slots] += new
        tokens = np.zeros(starts[-1], np.int32)
        tables = (slots[:, None].astype(np.int32),)
        yield Batch(
            tokens, np.concatenate(at).astype(np.int32), starts, past[slots], tables, (None,) * len(slots)
        )


@dataclass
class Beside:
    """A module of one segment, run op by op over pages and as a network over slots, on random weights."""

    m: Module
    seed: int = 0
    filled: bool = False
    packed: bool = False
    experts: bool = False
    ints: tuple[int, int] = (-1, 5)
    paged: dict[Value, PagedCache] = field(default_factory=dict[Value, PagedCache])
    linear: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def __post_init__(self) -> None:
        self.program = lower(self.m, split=False, kernels=Kernels(self.packed, self.experts))
        (segment,) = self.program.parts
        assert isinstance(segment, Segment)
        self.network = segment.network
        self.main = self.program.module.main
        self.slots = Slots(SLOTS, filled=self.filled)
        self.random = torch.Generator().manual_seed(self.seed)
        m = self.program.module
        checkpoint = RandomWeights([m], self.seed)
        self.weights = {p: bound_value(p, checkpoint, None, m) for p in self.main.weights}
        self.sources = {
            name: value_of(source, checkpoint, m) for name, source in self.program.weights.items()
        }
        for p in self.main.data:
            if isinstance(p.type.elem, Paged):
                made = empty_cache(p.type, SLOTS)
                assert isinstance(made, PagedCache)
                self.paged[p] = made
        for t in self.network.inputs:
            if t.name in self.network.aliases:
                _, heads, held, dim = (d if isinstance(d, int) else SLOTS for d in t.dims)
                assert held == length(CONTEXT, ROWS)
                self.linear[t.name] = torch.zeros(SLOTS, heads, held, dim, dtype=t.elem.torch)

    def draw(self, p: Param, rows: int) -> torch.Tensor:
        """A random value of an operand in a step of ``rows``; of integers, from ``ints``."""
        dims = [d if isinstance(d, int) else rows for d in p.type.dims]
        if p.type.plain.kind == "int":
            return torch.randint(*self.ints, dims, generator=self.random).to(p.type.plain.torch)
        return torch.randn(dims, generator=self.random).to(p.type.plain.torch)

    def run(self, count: int, tolerance: float) -> None:
        """Compare ``count`` steps, and what caches then hold."""
        for batch in batches(self.seed, count):
            given = {
                p: self.draw(p, len(batch.tokens)) for p in self.main.data if isinstance(p.type.elem, Elem)
            }
            wanted = self.bodies(batch, given)
            for step in self.slots.steps(batch, self.program.packed):
                rows = [slice(*batch.starts[s : s + 2].tolist()) for s in step.sequences]
                made = self.step(step, rows, given)
                for v in (v for v in self.main.returns if isinstance(v.type.elem, Elem)):
                    for row, at in self.pairs(v, step, rows):
                        torch.testing.assert_close(
                            made[v.name][at], wanted[v][row], rtol=tolerance, atol=tolerance
                        )
            self.same_caches(batch, tolerance)

    def bodies(self, batch: Batch, given: Mapping[Param, torch.Tensor]) -> dict[Value, Any]:
        """Every value of ``main``, op by op."""
        positions, starts, context = map(torch.from_numpy, (batch.positions, batch.starts, batch.context))
        seqs = Seqs(positions, starts, context, {"full": torch.from_numpy(batch.tables[0])})
        values: dict[Value, Any] = {**given, **self.paged, **self.weights}
        values |= {p: seqs for p in self.main.data if str(p.type.elem) == "seqs"}
        env = {"T": seqs.tokens, "S": seqs.count, "P": SLOTS}
        for n in self.main.nodes:
            args = [values[a] if isinstance(a, Value) else a for a in n.args]
            values |= dict(zip(n.results, apply_node(n, args, env), strict=True))
        roots = [v for v in self.main.returns if isinstance(v.type.elem, Paged)]
        self.paged = {p: values[v] for p, v in zip(self.paged, roots, strict=True)}
        return values

    def pairs(
        self, v: Value, step: SlotStep, rows: list[slice]
    ) -> list[tuple[slice, slice]] | list[tuple[int, int]]:
        """Which entries of the whole batch's value are which of the step's: rows, or those of sequences."""
        if str(v.type.dims[0]) == "S":
            return list(zip(step.sequences, step.rows, strict=True))
        return list(zip(rows, self.places(step, rows), strict=True))

    def places(self, step: SlotStep, rows: list[slice]) -> list[slice]:
        """Where the rows of each sequence are in a step."""
        ends = [int(step.last[row]) + 1 for row in step.rows]
        return [slice(end - (r.stop - r.start), end) for r, end in zip(rows, ends, strict=True)]

    def step(
        self, step: SlotStep, rows: list[slice], given: Mapping[Param, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the network leaves."""
        arrays = {
            k: torch.from_numpy(getattr(step, k)) for k in ("positions", "last", "starts", "past", "lengths")
        }
        arrays |= {k: torch.from_numpy(getattr(step, k)) for k in ("pad", "unpad")}
        for p, x in given.items():
            if str(p.type.dims[0]) != "T":
                arrays[p.name] = x
                continue
            arrays[p.name] = x.new_zeros(len(step.tokens), *x.shape[1:])
            for row, at in zip(rows, self.places(step, rows), strict=True):
                arrays[p.name][at] = x[row]
        for name, x in self.linear.items():
            arrays[name] = x[step.first : step.first + step.slots]
        given_names = {t.name: arrays[t.name] for t in self.network.inputs}
        return self.network.run(given_names, self.sources.__getitem__)

    def same_caches(self, batch: Batch, tolerance: float) -> None:
        """What a sequence has stored is the same in its page as in its slot."""
        for p, cache in self.paged.items():
            for slot, used in zip(batch.tables[0][:, 0].tolist(), batch.context.tolist(), strict=True):
                for tail, x in (("k", cache.k), ("v", cache.v)):
                    if f"{p.name}.{tail}" in self.linear:
                        mine = self.linear[f"{p.name}.{tail}"][slot, :, :used].transpose(0, 1)
                        torch.testing.assert_close(mine, x[slot, :used], rtol=tolerance, atol=tolerance)
