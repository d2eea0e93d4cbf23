"""irloom as a contender: one engine, its loop, token ids in and out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from serve import Answers, Clock, contend


class Irloom:
    """``pipeline``: text, or ``+ passes`` to put before the last pass of the target's default pipeline."""

    def __init__(
        self, model: str, pipeline: str, threads: int, longest: int, requests: int, target: str = "cpu"
    ) -> None:
        import torch

        import irloom
        from irloom.backends.cpu.native import load_kernels
        from irloom.frontends.gguf import read_header
        from irloom.runtime import Loop

        torch.set_num_threads(threads)
        self.kernels = load_kernels()
        self.target, self.pipeline = target, _pipeline(target, pipeline)
        limits = {"threads": threads, "max_context": longest, "max_seqs": max(requests, 1)}
        self.llm = irloom.LLM(model, target, self.pipeline, **limits)
        self.loop = Loop(self.llm.engine)  # the other contenders make no text either
        self.parameters = sum(math.prod(e.dims) for e in read_header(Path(model)).entries.values())

    def facts(self) -> dict[str, Any]:
        from irloom.backends.machine import compiler, cores, cpu_features, cpu_name

        made = compiler()
        return {
            "weight_bytes": self.llm.engine.bytes_read,
            "parameters": self.parameters,
            "about": {
                "target": self.target,
                "pipeline": self.pipeline,
                "cpu": cpu_name(),
                "cores": cores(),
                "features": list(cpu_features()),
                "compiler": made and made.version,
                "threads": self.kernels.threads,
                "fallbacks": self.llm.manifest.settings.get("fallbacks"),
            },
        }

    def answer(self, prompts: list[list[int]], new: list[int]) -> Answers:
        from irloom import SamplingParams

        params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in new]
        clock = Clock()
        ids = [self.loop.add_request(p, one) for p, one in zip(prompts, params, strict=True)]
        tokens: dict[str, list[int]] = {i: [] for i in ids}
        while self.loop.unfinished:
            for delta in self.loop.step():
                tokens[delta.id] += delta.token_ids
                if delta.id == ids[0] and delta.token_ids:
                    clock.tick()
        return clock.answers(list(tokens.values()))

    def serve_bandwidth(self, megabytes: int, repeats: int) -> dict[str, float]:
        """Bytes per second of the best read of each probe: the kernels' own, and torch's sum."""
        import torch

        from irloom.backends.machine import read_bandwidth

        data = torch.ones(megabytes << 18)
        best = max(self.kernels.read_bandwidth(data) for _ in range(repeats))
        read_bandwidth.cache_clear()
        return {"kernels": best, "torch": read_bandwidth(data.nbytes, repeats)}


def _pipeline(target: str, text: str) -> str:
    from irloom.backends.core import backend

    if not text.startswith("+"):
        return text
    *start, last = backend(target).pipeline
    return ", ".join(p for p in [*start, text[1:].strip(), last] if p)


contend(Irloom)
