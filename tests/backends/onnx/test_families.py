"""Models as ONNX compute what the library does, step by step: prompts in slots of a cache, chunks, tokens.

ONNX Runtime runs the exported files; what it leaves in caches in one step is what it reads in the next.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.onnx import Exported, Style, export  # noqa: E402
from irloom.backends.slots import Slots, SlotStep  # noqa: E402
from irloom.frontends.hf.live import LiveCheckpoint  # noqa: E402
from irloom.frontends.hf.selfcheck import import_tiny  # noqa: E402
from irloom.ir.graph import Module  # noqa: E402
from irloom.passes import run_pipeline  # noqa: E402
from irloom.runtime.core import Batch  # noqa: E402
from irloom.zoo.models import Specimen  # noqa: E402

PIPELINE = (
    "canonicalize, raise, canonicalize, outline, absorb-mla, gather-logits, kv-cache, kv-plan(layout=linear)"
)
SLOTS, LENGTH = 4, 48
STEPS = [{1: 5, 3: 9}, {1: 1, 3: 1}, {0: 12, 1: 1}, {0: 1, 1: 7, 3: 1}, {0: 1, 1: 1, 3: 1}]
"""Of each step, how many tokens a slot brings: slot 2 stays empty, and not all are in every step."""


def size(symbol: str) -> int:
    """Of a dim of a cache; ``L4`` is the length of one that keeps a key for four tokens."""
    return SLOTS if symbol == "B" else -(-LENGTH // int(symbol[1:] or 1))


@dataclass
class Runner:
    """An exported model in ONNX Runtime, with its caches."""

    exported: Exported
    caches: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.session = ort.InferenceSession(self.exported.path, options, providers=["CPUExecutionProvider"])
        for name in (name for names in self.exported.caches.values() for name in names):
            dims = [d if isinstance(d, int) else size(str(d)) for d in self.exported.inputs[name].dims]
            self.caches[name] = np.zeros(dims, np.float32)

    def logits(self, step: SlotStep) -> Any:
        """The logits of each sequence of a step."""
        own = slice(step.first, step.first + step.slots)
        given = {"ids": step.tokens, **{k: getattr(step, k) for k in NAMES if k in self.exported.inputs}}
        given |= {name: np.ascontiguousarray(x[own]) for name, x in self.caches.items()}
        names = list(self.exported.outputs)
        left = dict(zip(names, self.session.run(names, given), strict=True))
        for name, x in self.caches.items():
            x[own] = left[f"{name}.out"]
        return left["logits"]


NAMES = ("positions", "last", "starts", "past", "lengths", "pad", "unpad")


def served(runner: Runner, specimen: Specimen) -> float:
    """The largest difference to the library's logits over all steps, of the largest logit."""
    texts = {slot: specimen.draw(30, slot) for slot in range(SLOTS)}
    expected = {slot: specimen.logits(text) for slot, text in texts.items()}
    slots, at, worst = Slots(SLOTS), dict.fromkeys(texts, 0), 0.0
    for brings in STEPS:
        order = list(brings)
        starts = np.cumsum([0, *brings.values()]).astype(np.int32)
        parts = [texts[s][at[s] : at[s] + n] for s, n in brings.items()]
        positions = [np.arange(at[s], at[s] + n, dtype=np.int32) for s, n in brings.items()]
        at |= {s: at[s] + n for s, n in brings.items()}
        context = np.array([at[s] for s in order], np.int32)
        table = np.array([[s] for s in order], np.int32)
        batch = Batch(
            torch.cat(parts).int().numpy(), np.concatenate(positions), starts, context, (table,), ()
        )
        for step in slots.steps(batch):
            logits = runner.logits(step)
            for sequence, row in zip(step.sequences, step.rows, strict=True):
                slot = order[sequence]
                wanted = expected[slot][at[slot] - 1]
                scale = max(1.0, expected[slot].abs().max().item())
                worst = max(worst, (torch.from_numpy(logits[row]) - wanted).abs().max().item() / scale)
    return worst


@cache
def planned(name: str) -> tuple[Specimen, Module]:
    """A tiny model of an architecture, and its program with caches."""
    specimen = Specimen.of(name)
    m, _ = import_tiny(specimen.config, specimen.model)
    return specimen, run_pipeline(m, PIPELINE)[0]


def exported(name: str, folder: Path, attention: str = "op") -> tuple[Exported, Specimen]:
    """That program as ONNX."""
    specimen, m = planned(name)
    return export(m, LiveCheckpoint(specimen.model), folder, style=Style(attention)), specimen


FAMILIES = ["llama", "gemma3_text", "gpt2", "bloom"]


@pytest.mark.parametrize("attention", ["op", "products"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_librarys(family: str, attention: str, tmp_path: Path) -> None:
    found, specimen = exported(family, tmp_path, attention)
    assert served(Runner(found), specimen) < 1e-5


OTHERS = (
    "apertus", "axk2", "bailing_hybrid", "bamba", "cohere2", "deepseek_v3", "deepseek_v4",
    "falcon_h1", "gemma2", "glm4_moe", "gpt_neox", "gpt_oss", "granite_swa", "lfm2", "mamba",
    "minimax", "mixtral", "mpt", "olmo2", "phi3", "qwen3_moe", "qwen3_next", "recurrent_gemma",
    "rwkv", "xlstm",
)  # fmt: skip
"""Experts, latents, sinks, slopes, chosen keys, windows, softcaps, states of every kind."""


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_logits_of_other_families_are_the_librarys(family: str, tmp_path: Path) -> None:
    found, specimen = exported(family, tmp_path)
    assert served(Runner(found), specimen) < 2e-5


def test_attention_norms_rotation_and_caches_are_operators_of_onnx(tmp_path: Path) -> None:
    found, _ = exported("llama", tmp_path)
    for op in ("Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"):
        assert found.operators[op], op
