"""The CUDA target: build lowers a module and stores its weights and kernels, open takes them to the GPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.beside import beside
from irloom.backends.core import START, Kernels, Limits, Report
from irloom.backends.gpu import gpu, lacking
from irloom.backends.pools import cache_plan, pools
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import EngineMismatch
from irloom.ir.graph import Module
from irloom.ir.show import show
from irloom.runtime.core import Engine

from .buckets import Buckets
from .kernel_store import choices_of, keep_list, kernels_used, list_of, listed, seed, store, triton_cache
from .lower import lower
from .program import Program
from .room import Room, told
from .transfer import stage
from .tuning import tuner
from .wake import awake, wake
from .weight_store import FOLDER, LINK
from .weights import read_weights, stored_bytes, write_weights

LEAST = (8, 0)
"""Compute capability of the oldest GPU that the kernels are for: it has bf16 and asynchronous copies."""

ALONE = "end what else runs on the GPU"
SMALLER = f"{ALONE}, or a smaller `memory` for caches, or a smaller `max_tokens`"


class CudaBackend:
    """See ``backends.core.Backend``."""

    name = "cuda"
    dtype = "bf16"
    later: tuple[str, ...] = (FOLDER, LINK)
    """Parts whose bytes are checked on the GPU, when they have been taken there."""
    limits = Limits(max_tokens=8192, max_seqs=1024)
    pipeline = (
        *START,
        "fuse-qkv",
        "fuse-mlp",
        "fuse-moe",
        "fuse-norm",
        "fuse-epilogue",
        "kv-cache",
        "fuse-rope-append",
        "kv-plan(page=64)",
    )

    def lacks(self) -> str | None:
        """A GPU that is new enough, and a driver that is."""
        return lacking(LEAST)

    def lowered(self, m: Module) -> str:
        """The program as text."""
        return str(lower(m))

    def fallbacks(self, m: Module) -> dict[str, int]:
        """What has no kernel."""
        return lower(m).fallbacks

    def declined(self, m: Module) -> dict[str, str]:
        """What has one that does not fit."""
        return dict(lower(m).declined)

    def kernels(self, m: Module) -> Kernels:
        """What is launched for it."""
        p = lower(m)
        bodies = {op: p.declined.get(op, "no kernel") for op in p.fallbacks}
        return Kernels(max(len(f.launches) for f in p.functions.values()), not p.exact, bodies)

    def fingerprint(self) -> dict[str, str]:
        """The GPU that kernels are compiled for, and what compiles them."""
        from importlib.metadata import version

        there = gpu()
        if there is None:
            return {}
        return {"gpu": there.name, "sm": there.compute, "triton": version("triton")}

    def prepare(self) -> None:
        """Kernels are compiled for the shapes of a model; what compiles and launches them needs none."""
        wake()

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """Module, program to read, weights."""
        report("lower", 0, 1)
        plan, program = cache_plan(m), lower(m)
        out.write_program(m, plan)
        out.write_text("lowered.txt", str(program))
        report("lower", 1, 1)
        awake()
        out.manifest.settings["fingerprint"] = self.fingerprint()
        write_weights(out, program, checkpoint, report)
        if self.lacks() is None:
            _compile(program, out, report)

    def wake(self) -> None:
        """Begin what opening an engine needs beside its files."""
        wake(stage)

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """Weights and caches on the GPU."""
        from .engine import CudaEngine
        from .runner import planned
        from .trials import first_steps

        read = beside(lambda: _lowered(engine))  # while the GPU has its context made
        awake()
        if (lack := self.lacks()) is not None:
            raise EngineMismatch(
                f"{engine.folder}: the engine runs on the GPU, but this machine lacks {lack}"
            )
        engine.require(engine.manifest.settings["fingerprint"], self.fingerprint())
        kernels_used()
        seed(engine, triton_cache())
        tuner().fill(choices_of(engine))
        m, program = read.result()
        max_context = limits.context(int(engine.manifest.settings["max_context"]))
        limits = replace(limits, max_seqs=min(limits.max_seqs, limits.max_tokens))
        most = Buckets(limits.max_tokens, limits.max_seqs, exact=program.exact).largest
        step = planned(program, most.tokens, most.seqs)
        room = Room.here(stored_bytes(engine), step)
        limits = replace(limits, memory=room.for_caches(limits.memory))
        with told("the engine, though it was there", SMALLER):
            weights, wait = read_weights(engine, program, torch.device("cuda"))
            try:
                made = CudaEngine(program, weights, pools(m, limits, max_context), limits, max_context)
                first_steps(made)
            finally:
                wait()
        return made


def _lowered(engine: EngineReader) -> tuple[Module, Program]:
    """Its module, and the program of that."""
    m = engine.module()
    return m, lower(m)


def _compile(program: Program, out: EngineWriter, report: Report) -> None:
    """Compile the kernels and choose between them, unless that was done before; put both into the engine."""
    from .warm import warm_up

    used, facts = kernels_used(), f"{show(program.module)}{program}{CudaBackend.limits}"
    file = list_of(tuner().file, facts)
    before = listed(file, triton_cache())
    if before is None:
        with told(f"steps of {CudaBackend.limits.max_tokens} tokens, which a build runs", ALONE):
            warm_up(program, CudaBackend.limits, report)
        keep_list(file, used)
    store(out, triton_cache(), before or used, tuner().known)


BACKEND = CudaBackend()
