"""The CUDA target: build lowers a module and stores its weights and kernels, open takes them to the GPU."""

from __future__ import annotations

from dataclasses import replace

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import Limits, Report
from irloom.backends.pools import cache_plan, pools
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module
from irloom.runtime.core import Engine

from .lower import lower
from .weights import read_weights, write_weights


class CudaBackend:
    """See ``backends.core.Backend``."""

    name = "cuda"
    dtype = "bf16"
    pipeline = (
        "canonicalize",
        "raise",
        "canonicalize",
        "outline",
        "absorb-mla",
        "gather-logits",
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
        """A GPU that torch sees."""
        return None if torch.cuda.is_available() else "an NVIDIA GPU and torch for CUDA"

    def lowered(self, m: Module) -> str:
        """The program as text."""
        return str(lower(m))

    def fallbacks(self, m: Module) -> dict[str, int]:
        """What has no kernel."""
        return lower(m).fallbacks

    def declined(self, m: Module) -> dict[str, str]:
        """What has one that does not fit."""
        return dict(lower(m).declined)

    def fingerprint(self) -> dict[str, str]:
        """The GPU that kernels are compiled for, and what compiles them."""
        from importlib.metadata import version

        if not torch.cuda.is_available():
            return {}
        major, minor = torch.cuda.get_device_capability()
        return {"gpu": torch.cuda.get_device_name(), "sm": f"{major}.{minor}", "triton": version("triton")}

    def prepare(self) -> None:
        """Kernels are compiled for the shapes of a model: nothing can be done before it is traced."""

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """Module, program to read, weights."""
        report("lower", 0, 1)
        plan, program = cache_plan(m), lower(m)
        out.write_program(m, plan)
        out.write_text("lowered.txt", str(program))
        report("lower", 1, 1)
        out.manifest.settings["fingerprint"] = self.fingerprint()
        write_weights(out, program, checkpoint, report)

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """Weights and caches on the GPU."""
        from .engine import CudaEngine

        engine.require(engine.manifest.settings["fingerprint"], self.fingerprint())
        m = engine.module()
        program = lower(m)
        max_context = limits.context(int(engine.manifest.settings["max_context"]))
        weights = read_weights(engine, program, torch.device("cuda"))
        limits = replace(limits, max_seqs=min(limits.max_seqs, limits.max_tokens))
        if limits.memory is None:
            limits = replace(limits, memory=torch.cuda.mem_get_info()[0] // 10 * 8)
        return CudaEngine(program, weights, pools(m, limits, max_context), limits, max_context)


BACKEND = CudaBackend()
