"""The TensorRT engine: a step is its program's parts in order, over slots or pages, then the sampler.

Networks and the bodies between them work on the same device memory, by name: caches are views from the
step's first slot on, values lie in blocks that later values use again. Nothing is allocated in a step but
what a body in torch makes, and that is copied to its block: networks find each input where it always is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from irloom.backends.core import Limits
from irloom.backends.device_sampler import sample
from irloom.backends.pools import cache_plan, pools
from irloom.backends.slots import Slots, SlotStep, length, whole
from irloom.ir.elem import SEQS
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
from .profiles import Ranges
from .program import Outside, Program, Segment
from .step import StepArrays, Told

FLAGS = ("max_tokens", "max_seqs", "max_seqs", "max_tokens", "context")
"""Which limit of ``kv-plan`` bounds tokens, sequences, slots, tokens of a slot and the length of one."""


def outside_weights(program: Program) -> list[Param]:
    """The parameters with weights that bodies between networks read."""
    read = (v for o in program.outside for v in o.node.values)
    return list(dict.fromkeys(v for v in read if isinstance(v, Param) and v.weight is not None))


@dataclass(frozen=True)
class Frame:
    """A step under way: what its symbols are, the values there are by now, what bodies see, its logits."""

    step: SlotStep
    sizes: Mapping[str, int]
    values: dict[str, torch.Tensor]
    seqs: Seqs | None
    logits: torch.Tensor


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
        shapes = Ranges.of(program).shapes
        padded = max(seqs, *(slots * tokens for slots, tokens in shapes))
        most = self.told.most(self.max_tokens, seqs, max_context, padded)
        chunks = min(self.max_seqs, self.max_tokens // 2) if program.linear else 0
        self.arrays = [StepArrays(most, self.device) for _ in range(1 + chunks)]  # for the steps of a batch
        states = any(c.values is None for c in program.caches)
        self.slots = Slots(
            self.pools[0].pages,
            filled=filled and not program.outside and not states,
            anchored=not program.aligned,
            shapes=shapes,
        )
        logits = self.memory.values[program.logits]
        assert isinstance(logits.dims[1], int)
        self.vocab = logits.dims[1]
        self._logits = torch.zeros(2 * seqs, self.vocab, dtype=logits.elem.torch, device=self.device)

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        rows = self._run(batch)
        asked = [s for s, row in enumerate(batch.sampling) if row is not None]
        told = [row for row in batch.sampling if row is not None]
        out: list[Sampled | None] = [None] * len(batch.sampling)
        picked = [rows[s] for s in asked]
        with torch.inference_mode():
            chosen = sample(self._logits, told, None if picked == list(range(len(picked))) else picked)
        for s, one in zip(asked, chosen, strict=True):
            out[s] = one
        return out

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values; the logits [S, vocab] of each sequence's last token."""
        return self._logits[self._run(batch)]

    # a batch

    def _run(self, batch: Batch) -> list[int]:
        """Run the batch's steps; for each sequence the row of its logits."""
        steps = self.slots.steps(batch, self.packed) if self.program.linear else [whole(batch)]
        at, used = [0] * len(batch.context), 0
        with torch.inference_mode():
            for step, arrays in zip(steps, self.arrays, strict=False):
                sizes, given = self._sizes(step), arrays.load(self.told.arrays(step))
                logits = self._logits[used : used + len(step.last)]
                self._parts(Frame(step, sizes, given, self.told.seqs(given), logits))
                for s, row in zip(step.sequences, step.rows, strict=True):
                    at[s] = used + row
                used += len(step.last)
        return at

    def _parts(self, at: Frame) -> None:
        """The parts of the program, in order."""
        executors = iter(self.executors)
        for part in self.program.parts:
            made = {name: self._place(name, at) for name in part.makes if name in self.memory.values}
            if isinstance(part, Segment):
                next(executors).run({name: self._input(name, at) for name in part.reads}, made)
            else:
                self._body(part, at, made)
            at.values.update(made)

    def _place(self, name: str, at: Frame) -> torch.Tensor:
        return at.logits if name == self.program.logits else self.memory.view(name, at.sizes)

    def _input(self, name: str, at: Frame) -> torch.Tensor:
        if name in self.caches.tensors:
            return self.caches.tensors[name][at.step.first : at.step.first + at.step.slots]
        return at.values[name]

    def _body(self, part: Outside, at: Frame, made: Mapping[str, torch.Tensor]) -> None:
        """Run the body of an op; what it makes is copied to the places where networks look for it."""
        n = part.node
        args = [self._operand(a, at) if isinstance(a, Value) else a for a in n.args]
        with self.device:  # for what a body makes from nothing
            results = apply_node(n, args, at.sizes)
        for v, x in zip(n.results, results, strict=True):
            if v.name in made:
                made[v.name].copy_(x)

    def _operand(self, v: Value, at: Frame) -> Any:
        if v in self.roots:
            return self.caches.bodies[self.roots[v].name]
        if v.type.elem == SEQS:
            return at.seqs
        return self.weights[v.name] if isinstance(v, Param) and v.weight is not None else at.values[v.name]

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
    if not program.linear or all(c.values is None for c in program.caches):
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
    limits = replace(limits, max_seqs=min(limits.max_seqs, limits.max_tokens))  # a token a step for each
    if limits.memory is None and device.type == "cuda":
        limits = replace(limits, memory=torch.cuda.mem_get_info(device)[0] // 10 * 9)
    plan = cache_plan(program.module)
    return pools(program.module, limits, context, slot_plan(plan, slot) if program.linear else plan)
