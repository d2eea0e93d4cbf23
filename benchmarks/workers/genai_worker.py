"""onnxruntime-genai as a contender: its ``Generator``, one request after the other.

Its ``Engine`` batches requests, but on the CPU only prompts of one length: ragged ones fail in the kernel of
its attention, and batches that change need paged attention, which has no kernel there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serve import Answers, Clock, contend

LEAST = 1024
"""Tokens a cache has room for: as many as a window at least, or its attention refuses the cache."""


class GenAI:
    """A model that ``genai_model.py`` made."""

    def __init__(self, model: str, threads: int, longest: int) -> None:
        import onnxruntime_genai as og

        self.og, self.threads, self.longest = og, threads, max(longest, LEAST)
        config = og.Config(model)
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.bytes = (Path(model) / "model.onnx.data").stat().st_size

    def facts(self) -> dict[str, Any]:
        about = {"onnxruntime-genai": self.og.__version__, "threads": self.threads}
        return {"weight_bytes": self.bytes, "about": about}

    def answer(self, prompts: list[list[int]], new: list[int]) -> Answers:
        clock = Clock()
        rest = Clock(clock.start)
        each = enumerate(zip(prompts, new, strict=True))
        return clock.answers([self._one(p, n, rest if i else clock) for i, (p, n) in each])

    def _one(self, prompt: list[int], new: int, clock: Clock) -> list[int]:
        import numpy as np

        params = self.og.GeneratorParams(self.model)
        total = len(prompt) + new
        params.set_search_options(do_sample=False, max_length=max(total, self.longest), min_length=total)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        for _ in range(new):
            generator.generate_next_token()
            generator.get_next_tokens()
            clock.tick()
        made: list[int] = generator.get_sequence(0)[len(prompt) :].tolist()
        assert len(made) == new, f"the generator made {len(made)} tokens instead of {new}"
        return made


contend(GenAI)
