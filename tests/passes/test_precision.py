"""Precision on whole models: their logits move within its budget, and half the bits are half the bytes."""

import pytest

from irloom.frontends.hf import trace_hf
from irloom.ir.graph import Loop, Module
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import run_pipeline
from irloom.passes.check import compare
from irloom.passes.precision import Precision
from tests.tiny import gemma_config, llama_config

READY = "canonicalize, raise, canonicalize, outline"
PASSES = [
    Precision("bf16"),
    Precision("f16", override=("0=f32", "-1:mlp=bf16"), skip=("lm_head",)),
    Precision("f32"),
]


@pytest.fixture(scope="module", params=[llama_config, gemma_config], ids=["llama", "gemma"])
def model(request) -> Module:
    return run_pipeline(trace_hf(request.param()), READY)[0]


@pytest.mark.parametrize("p", PASSES, ids=str)
def test_logits_move_within_the_budget(model, p):
    after, _ = run_pipeline(model, [p])
    report = compare(model, after, p)
    assert report.ok, report
    assert (report.max_abs == 0) == (p == Precision("f32"))
    assert parse(show(after)) == after
    assert [r.type for r in after.main.returns] == [r.type for r in model.main.returns]


def test_half_the_bits_are_half_the_bytes(model):
    after, _ = run_pipeline(model, "precision(bf16)")
    assert after.plan().weights.bytes * 2 == model.plan().weights.bytes


def test_what_repeats_stays_a_loop_on_both_sides_of_a_layer_that_differs():
    model, _ = run_pipeline(trace_hf(llama_config(num_hidden_layers=6)), READY)
    after, _ = run_pipeline(model, "precision(bf16, override='2=f32'), kv-cache")
    assert [len(s.indices) for s in after.main.body if isinstance(s, Loop)] == [2, 3]
    assert set(after.funcs) == {"layer", "layer_1", "main"}
    caches = {name: str(f.data[-1].type.elem) for name, f in after.funcs.items()}
    assert caches["layer"].startswith("paged[bf16")
    assert caches["layer_1"].startswith("paged[f32")
