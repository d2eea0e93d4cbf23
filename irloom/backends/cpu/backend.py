"""The CPU target: build packs weights for the kernels, open maps them and lowers the module again.

An engine for the CPU brings no code of its own: ``lowered.py`` runs only if it is what this irloom makes of
``module.irloom``, and kernels come from this package, compiled once a machine.
"""

from __future__ import annotations

import math
import re
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import START, Limits, Report, quiet
from irloom.backends.cpu.calls import generated
from irloom.backends.cpu.elementwise import source
from irloom.backends.cpu.engine import CpuEngine
from irloom.backends.cpu.extern import extern_calls
from irloom.backends.cpu.lower import lower
from irloom.backends.cpu.memory import AnyCache, Cache, States
from irloom.backends.cpu.native import Kernels, load_kernels
from irloom.backends.cpu.program import Program
from irloom.backends.cpu.runner import Runner
from irloom.backends.cpu.step import Step, zeros
from irloom.backends.cpu.weights import read_weights, size, write_weights
from irloom.backends.machine import compiler, cores, cpu_features
from irloom.backends.pools import cache_plan, pools
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import CACHES, Cached, Paged
from irloom.ir.errors import EngineMismatch
from irloom.ir.graph import Module
from irloom.ir.interp import cache_types
from irloom.ir.seqs import PagedCache, StateCache
from irloom.ir.types import Type
from irloom.runtime.core import Engine


class CpuBackend:
    """See ``backends.core.Backend``."""

    name = "cpu"
    dtype = "f32"
    later: tuple[str, ...] = ()
    pipeline = (
        *START,
        "fuse-qkv",
        "fuse-mlp",
        "fuse-moe",
        "fuse-norm",
        "fuse-epilogue",
        "kv-cache",
        "fuse-rope-append",
        "kv-plan",
        "plan-memory",
    )

    def lacks(self) -> str | None:
        """Kernels are compiled on the machine that runs them."""
        return None if compiler() else "a C++ compiler"

    def lowered(self, m: Module) -> str:
        """The program as text."""
        return lower(m).text

    def fallbacks(self, m: Module) -> dict[str, int]:
        """What has no kernel."""
        return lower(m).fallbacks

    def declined(self, m: Module) -> dict[str, str]:
        """See ``extern``."""
        return lower(m).declined

    def fingerprint(self) -> dict[str, str]:
        """Kernels are compiled for the CPU, and by no other version than irloom's."""
        return {}

    def prepare(self) -> None:
        """Let the compiler work on the kernels while the model is traced."""
        _kernels()

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """Module, program to read, packed weights."""
        report("lower", 0, 1)
        plan, program = cache_plan(m), lower(m)
        out.write_program(m, plan)
        out.write_text("lowered.py", program.text)
        out.manifest.settings["fallbacks"] = program.fallbacks
        report("lower", 1, 1)
        extra(library(report), program)
        write_weights(out.file("weights.safetensors"), program, m, checkpoint, report)

    def wake(self) -> None:
        """Nothing: kernels lie in the engine."""

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """Map the weights, make caches and buffers, bind the program."""
        lacking = sorted(set(engine.manifest.machine.get("features", [])) - set(cpu_features()))
        if lacking:
            raise engine.refuse(
                f"the engine does not fit: built for a CPU with {', '.join(lacking)}, which this one lacks"
            )
        m = engine.module()
        program = lower(m)
        if program.text != (stored := engine.read_text("lowered.py")):
            raise engine.refuse(_why_other(program, stored))
        settings = engine.manifest.settings
        max_context = limits.context(int(settings["max_context"]))
        made = pools(m, limits, max_context)
        step = Step(made, limits.max_tokens, limits.max_seqs, max_context)
        kernels = library(quiet)
        kernels.set_threads(limits.threads or cores())
        weights = read_weights(
            engine.file("weights.safetensors"), program, bool(settings.get("int8_activations", True))
        )
        runner = Runner(
            engine.file("lowered.py"),
            kernels.raw,
            step,
            extra(kernels, program),
            weights,
            _caches(m, step),
        )
        (logits, *_) = m.main.returns
        vocab = logits.type.dims[1]
        assert isinstance(vocab, int)
        return CpuEngine(runner, step, vocab, made, max_context, size(weights))


def _why_other(program: Program, stored: str) -> str:
    """Why lowering does not give what was stored: a plugin's kernel came or went, or irloom changed."""
    called = set(re.findall(r"\bkernels\.(\w+)\(", stored))
    for name in sorted(called ^ program.extern):
        has, had = ("no kernel", "one") if name in called else ("a kernel", "none")
        return f"op {name} has {has} here, and had {had} when the engine was built"
    return "the program was lowered by another irloom than this one"


def _caches(m: Module, step: Step) -> dict[str, AnyCache | list[AnyCache]]:
    stack = next((p.name for p in m.main.data if p.type.elem == CACHES), None)
    out: dict[str, Any] = {}
    types = cache_types(m)
    for key in sorted(types, key=lambda k: (isinstance(k, str), k)):
        one = _cache(types[key], step)
        if isinstance(key, int):
            out.setdefault(str(stack), []).append(one)
        else:
            out[key] = one
    return out


def _cache(t: Type, step: Step) -> AnyCache:
    assert isinstance(t.elem, Cached)
    arrays, dtype = step.pools[t.elem.pool], t.elem.elem.torch
    dims = tuple(d for d in t.dims[1:] if isinstance(d, int))

    def made(*sizes: int) -> torch.Tensor:
        n = math.prod(sizes)
        return zeros(n * dtype.itemsize, dtype)[:n].view(sizes)

    if not isinstance(t.elem, Paged):
        states = made(arrays.pool.pages, *dims)
        return States(StateCache(states, t.elem.every, t.elem.pool, in_place=True), arrays)
    heads, dim = dims
    widths = dim, dim if t.elem.values is None else t.elem.values
    k, v = (made(arrays.pool.pages, t.elem.entries, heads, d) for d in widths)
    return Cache(PagedCache(k, v, t.elem.pool, in_place=True, stride=t.elem.stride), arrays)


def extra(kernels: Kernels, program: Program) -> dict[str, Any]:
    """What the program calls beside irloom's kernels, compiled if this machine has not done so: what was
    generated for it, by name, and as ``kernels`` those that ops bring.
    """
    made = kernels.compile_extra(source(program.kernels)) if program.kernels else None
    own = extern_calls(kernels, program.extern)
    return {**generated(made, program.text), "kernels": SimpleNamespace(**own)}


@cache
def _kernels() -> Future[Kernels | None]:
    """The kernels, being compiled in the background the first time."""
    worker = ThreadPoolExecutor(1)
    made = worker.submit(load_kernels)
    worker.shutdown(wait=False)
    return made


def library(report: Report) -> Kernels:
    """The kernels, compiled if this machine has not done so; ``EngineMismatch`` without a compiler."""
    report("kernels", 0, 1)
    made = _kernels().result()
    if made is None:
        raise EngineMismatch(
            "target cpu needs a C++ compiler, and none was found",
            hint="install g++ or clang++, or use --target reference",
        )
    report("kernels", 1, 1)
    return made


BACKEND = CpuBackend()
