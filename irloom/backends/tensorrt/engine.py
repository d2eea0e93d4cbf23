"""The TensorRT engine: a step is its program's parts in order, over slots or pages, then the sampler.

Networks and the bodies between them work on the same device memory, by name: caches are views from the
step's first slot on, values lie in blocks that later values use again. Nothing is allocated in a step but
what a body in torch makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from irloom.backends.core import Limits
from irloom.backends.device_sampler import sample
from irloom.backends.pools import cache_plan, pools
from irloom.backends.slots import Slots, SlotStep, length, whole
from irloom.ir.elem import SEQS, Cached
from irloom.ir.errors import RequestError
from irloom.ir.graph import Param, Value
from irloom.ir.interp import apply_node
from irloom.ir.plan import Pool
from irloom.ir.seqs import Seqs
from irloom.runtime.core import Batch, Sampled

from .caches import Caches, slot_plan
from .executor import Executor
from .lower import roots
from .memory import Memory
from .program import Outside, Program, Segment
from .step import StepArrays, Told

FLAGS = ("max_tokens", "max_seqs", "max_seqs", "max_tokens", "context")
"""Which limit of ``kv-plan`` bounds tokens, sequences, slots, tokens of a slot and the length of one."""


def outside_weights(program: Program) -> list[Param]:
    """The parameters with weights that bodies between networks read."""
    read = (v for o in program.outside for v in o.node.values)
    return list(dict.fromkeys(v for v in read if isinstance(v, Param) and v.weight is not None))


class TensorRTEngine:
    """See ``runtime.core.Engine``. ``executors`` run the program's networks, in order.

    ``value(param)`` gives the weights that bodies read (``outside_weights``). With ``packed`` all sequences
    of a step go in one, for attention that takes packed queries. With ``filled``, steps that decode have a
    row for every slot: few shapes, for which graphs are worth while.
    """

    def __init__(
        self,
        program: Program,
        executors: Sequence[Executor],
        value: Callable[[Param], torch.Tensor],
        limits: Limits,
        max_context: int,
        *,
        device: torch.device | str = "cuda",
        packed: bool = False,
        filled: bool = False,
    ) -> None:
        self.program, self.executors, self.packed = program, list(executors), packed
        self.device = torch.device(device)
        self.max_tokens, self.max_seqs, self.max_context = limits.max_tokens, limits.max_seqs, max_context
        self.length = _length(program, limits, max_context)
        self.pools = _pools(program, limits, max_context, self.length, self.device)
        self.roots = roots(program.module.main)
        self.weights = {p.name: value(p).to(self.device) for p in outside_weights(program)}
        self.caches = Caches(program, self.pools, self.length, self.device)
        self.memory, self.symbols = Memory(program, self.device), _symbols(program)
        self.bound = {name for s in program.segments for name in s.network.symbols}
        self.told, seqs = Told(program, self.pools), max(self.pools[0].pages, limits.max_seqs)
        most = self.told.most(self.max_tokens, seqs, max_context)
        self.arrays = [StepArrays(most, self.device) for _ in range(2)]  # for the steps of a batch
        states = any(c.values is None for c in program.caches)
        self.slots = Slots(
            self.pools[0].pages,
            filled=filled and not program.outside and not states,
            anchored=any(t[:1].nbytes % 256 for t in self.caches.tensors.values()),
        )
        logits = program.values[program.logits]
        assert isinstance(logits.dims[1], int)
        self.vocab = logits.dims[1]
        self._logits = torch.zeros(2 * seqs, self.vocab, dtype=logits.elem.torch, device=self.device)

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        rows = self._run(batch)
        asked = [s for s, row in enumerate(batch.sampling) if row is not None]
        told = [row for row in batch.sampling if row is not None]
        out: list[Sampled | None] = [None] * len(batch.sampling)
        with torch.inference_mode():
            chosen = sample(self._picked([rows[s] for s in asked]), told)
        for s, one in zip(asked, chosen, strict=True):
            out[s] = one
        return out

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values; the logits [S, vocab] of each sequence's last token."""
        return self._picked(self._run(batch)).clone()

    def _picked(self, rows: list[int]) -> torch.Tensor:
        if rows == list(range(len(rows))):
            return self._logits[: len(rows)]
        return self._logits[torch.tensor(rows, device=self.device)]

    # a batch

    def _run(self, batch: Batch) -> list[int]:
        """Run the batch's steps; for each sequence the row of its logits."""
        steps = self.slots.steps(batch, self.packed) if self.program.linear else [whole(batch)]
        at, used = [0] * len(batch.context), 0
        with torch.inference_mode():
            for step, arrays in zip(steps, self.arrays, strict=False):
                sizes = self._sizes(step)
                self._parts(step, sizes, arrays.load(self.told.arrays(step)), used)
                for s, row in zip(step.sequences, step.rows, strict=True):
                    at[s] = used + row
                used += len(step.last)
        return at

    def _parts(
        self, step: SlotStep, sizes: Mapping[str, int], given: dict[str, torch.Tensor], used: int
    ) -> None:
        """The parts of the program, with the arrays of the step; logits go behind the first ``used`` rows."""
        values: dict[str, Any] = dict(given)
        logits = self._logits[used : used + len(step.last)]
        seqs = self.told.seqs(given)
        executors = iter(self.executors)
        for part in self.program.parts:
            if isinstance(part, Segment):
                self._segment(part, next(executors), values, step, sizes, logits)
            else:
                self._outside(part, values, seqs, sizes)
        if values[self.program.logits] is not logits:  # a body made them
            logits.copy_(values[self.program.logits])

    def _segment(
        self,
        part: Segment,
        executor: Executor,
        values: dict[str, Any],
        step: SlotStep,
        sizes: Mapping[str, int],
        logits: torch.Tensor,
    ) -> None:
        made = {
            name: logits if name == self.program.logits else self.memory.view(name, sizes)
            for name in part.makes
        }
        caches = self.caches.views(
            [name for name in part.reads if name in self.caches.tensors], step.first, step.slots
        )
        executor.run({name: caches[name] if name in caches else values[name] for name in part.reads}, made)
        values |= made

    def _outside(
        self, part: Outside, values: dict[str, Any], seqs: Seqs | None, sizes: Mapping[str, int]
    ) -> None:
        n = part.node
        args = [self._operand(a, values, seqs) if isinstance(a, Value) else a for a in n.args]
        with self.device:  # for what a body makes from nothing
            made = apply_node(n, args, sizes)
        for v, x in zip(n.results, made, strict=True):
            if not isinstance(v.type.elem, Cached):
                values[v.name] = x.contiguous()

    def _operand(self, v: Value, values: Mapping[str, Any], seqs: Seqs | None) -> Any:
        if v in self.roots:
            return self.caches.bodies[self.roots[v].name]
        if v.type.elem == SEQS:
            return seqs
        return self.weights[v.name] if isinstance(v, Param) and v.weight is not None else values[v.name]

    def _sizes(self, step: SlotStep) -> dict[str, int]:
        """What each symbol is; ``RequestError`` where that is more than the engine was made for."""
        found = (len(step.tokens), len(step.last), step.slots, step.width, self.length)
        sizes = dict(zip(self.symbols, found, strict=False))
        for (name, n), flag in zip(sizes.items(), FLAGS, strict=False):
            low, high = self.program.dims.get(name, (1, n))
            if name in self.bound and not low <= n <= high:
                raise RequestError(
                    f"{name} is {n:,} in this step, but the engine takes {low:,} to {high:,}",
                    hint=f"a smaller {flag}, or an engine that was built with kv-plan({flag}=...) for more",
                )
        return sizes


def _length(program: Program, limits: Limits, context: int) -> int:
    """How long slots are: as the networks were made; ``RequestError`` where ``limits`` need longer ones."""
    need, has = length(context, limits.max_tokens), program.dims["L"][1]
    if not program.linear:
        return need
    if need > has:
        raise RequestError(
            f"sequences of {context:,} tokens in chunks of {limits.max_tokens:,} need slots of {need:,}, but "
            f"the engine has slots of {has:,} (dim L)",
            hint="a smaller max_context or max_tokens, or an engine built with kv-plan(context=...) for more",
        )
    return has


def _symbols(program: Program) -> tuple[str, ...]:
    """The symbols of tokens and sequences, as the program calls them, and those of slots if it has some."""
    seqs = next((p.type.dims for p in program.module.main.data if p.type.elem == SEQS), ())
    return (*map(str, seqs), *(("B", "N", "L") if program.linear else ()))


def _pools(
    program: Program, limits: Limits, context: int, slot: int, device: torch.device
) -> tuple[Pool, ...]:
    """Pages, or slots of ``slot`` tokens, as the memory for caches holds: of a GPU, most of what is free."""
    if limits.memory is None and device.type == "cuda":
        limits = replace(limits, memory=torch.cuda.mem_get_info(device)[0] // 10 * 9)
    plan = cache_plan(program.module)
    return pools(program.module, limits, context, slot_plan(plan, slot) if program.linear else plan)
