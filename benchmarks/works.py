"""The rows of ``gpu.py``: what is served, by whom, and the goal. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shapes import SHAPES

FIGURES = {
    "decode": "decoded tokens/s",
    "output": "answered tokens/s",
    "first": "ms to the first token",
    "open": "s from a new process to the first token",
    "build": "s to build an engine",
}
LESS = ("first", "open", "build")
"""Figures of which less is better."""
FP8_CACHE = ("quantize(fp8)", "kv-cache(elem=f8e4m3)")
INT4 = ("quantize(int4, group=128, scale=bf16)",)
VLLM_FP8 = "vllm(quantization=fp8, kv_cache_dtype=fp8)"
VLLM_INT4 = "vllm-int4"
"""Stands for the peer that ``gpu.vllm_int4`` spells."""
GENERATE = ("transformers", "compile", "batch")
L8, Q06, Q30 = SHAPES


@dataclass(frozen=True)
class Work:
    """A row: a shape, what its elements are made, requests as (how many, prompt, answer), and the goal.

    ``figure`` is a key of ``FIGURES``. ``passes`` join irloom's pipeline. Of many requests ``runs`` are
    measured, after ``warm`` short ones of as many.
    """

    title: str
    shape: str
    figure: str
    goal: float
    requests: tuple[int, int, int] = (1, 128, 1)
    passes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ("vllm",)
    runs: int = 3
    warm: int = 2

    @property
    def served(self) -> bool:
        """Whether requests are served, by everybody."""
        return self.figure in ("decode", "output", "first")

    @property
    def unit(self) -> str:
        """What the figure counts."""
        return FIGURES[self.figure]

    def of(self, found: Mapping[str, Any]) -> float:
        """The figure of what ``gpu.found_by`` found."""
        if self.figure == "first":
            return 1e3 * found["served"]["first_s"]["p50"]
        return found[f"{self.figure}_per_s"]

    def share(self, value: float, bounds: Mapping[str, Any] | None) -> float | None:
        """Of the roofline: how much of it a figure reaches."""
        if bounds is None or not self.served:
            return None
        bound = bounds["first_token_s" if self.figure == "first" else f"{self.figure}_per_s"]
        if bound is None:
            return None
        return 1e3 * bound / value if self.figure == "first" else value / bound

    @property
    def model(self) -> tuple[str, tuple[str, ...]]:
        """What rows have in common that one engine serves."""
        return self.shape, self.passes


WORKS = {
    "8b-bf16-alone": Work(
        "8B bf16, alone, 128/256", L8, "decode", 260, (1, 128, 256), (), ("vllm", *GENERATE)
    ),
    "ttft-bf16": Work("8B bf16, first token after 2048", L8, "first", 43, (1, 2048, 16)),
    "8b-bf16-64": Work(
        "8B bf16, 64 of 1024/256", L8, "output", 5500, (64, 1024, 256), (), ("vllm", "transformers", "batch")
    ),
    "8b-bf16-2048": Work("8B bf16, 2048 of 128/128", L8, "output", 20000, (2048, 128, 128), runs=1),
    "build-bf16": Work("8B bf16, build", L8, "build", 60, peers=()),
    "rebuild-bf16": Work("8B bf16, build again", L8, "build", 5, peers=()),
    "open-bf16": Work("8B bf16, open", L8, "open", 5, peers=()),
    "8b-fp8-alone": Work("8B fp8, alone, 128/256", L8, "decode", 430, (1, 128, 256), FP8_CACHE, (VLLM_FP8,)),
    "ttft-fp8": Work(
        "8B fp8, first token after 2048", L8, "first", 27, (1, 2048, 16), FP8_CACHE, (VLLM_FP8,)
    ),
    "8b-fp8-64": Work("8B fp8, 64 of 1024/256", L8, "output", 8500, (64, 1024, 256), FP8_CACHE, (VLLM_FP8,)),
    "8b-fp8-4096": Work(
        "8B fp8, 4096 of 128/128", L8, "output", 33000, (4096, 128, 128), FP8_CACHE, (VLLM_FP8,), runs=1
    ),
    "8b-fp8-1000": Work(
        "8B fp8, 1000 of 1000/1000", L8, "output", 18500, (1000, 1000, 1000), FP8_CACHE, (VLLM_FP8,), 1, 0
    ),
    "06b-bf16-alone": Work("0.6B bf16, alone, 128/256", Q06, "decode", 1400, (1, 128, 256)),
    "8b-int4-alone": Work("8B int4, alone, 128/256", L8, "decode", 620, (1, 128, 256), INT4, (VLLM_INT4,)),
    "30b-bf16-alone": Work("30B-A3B bf16, alone, 128/256", Q30, "decode", 490, (1, 128, 256)),
    "30b-bf16-64": Work("30B-A3B bf16, 64 of 1024/256", Q30, "output", 3400, (64, 1024, 256)),
}
"""Rows of one model stand together: whoever has loaded it serves them one after the other."""


def by_model(names: Iterable[str]) -> list[list[str]]:
    """Rows in groups that one engine serves, the most important first.

    >>> by_model(["06b-bf16-alone", "8b-bf16-alone", "ttft-bf16"])
    [['06b-bf16-alone'], ['8b-bf16-alone', 'ttft-bf16']]
    """
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(WORKS[name].model, []).append(name)
    return list(groups.values())
