"""Decompositions keep their digits, every rule is shown in the Markdown tests, and real models agree."""

from pathlib import Path

import pytest
import torch

from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import import_tiny
from irloom.ir.interp import Interpreter
from irloom.ir.parse import parse
from irloom.passes import run_pipeline
from irloom.passes.check import compare
from irloom.passes.decompose import DECOMPOSED, Decompose
from irloom.testing.markdown import headings
from irloom.zoo.models import Specimen

INF = float("inf")


def both(op: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What an op of one operand gives, and what takes its place."""
    elem = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]
    m = parse(f"def main(x: {elem}[T]):\n    y = {op}\n    return y\n")
    after, record = run_pipeline(m, "decompose")
    assert record.steps[0].changes.places
    return Interpreter(m)(x)[0], Interpreter(after)(x)[0]


@pytest.mark.parametrize("op", ["expm1(x)", "log1p(x)", "softplus(x)", "mish(x)", "silu(x)", "gelu(x)"])
def test_digits_near_zero_are_kept(op):
    x = torch.logspace(-30, 0, 200)
    x = torch.cat([x, -x[:-1]])
    want, got = both(op, x)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("op", "at"),
    [
        ("expm1(x)", [-INF, -200.0, 0.0, 60.0, 200.0, INF]),
        ("log1p(x)", [-1.0, 0.0, 1e30, INF]),
        ("softplus(x)", [-INF, -200.0, 0.0, 200.0, INF]),
        ("mish(x)", [-200.0, 0.0, 200.0, INF]),
        ("gelu(x, tanh=True)", [-200.0, 0.0, 200.0, INF]),
        ("rsqrt(x)", [0.0, 1e-38, 1e30, INF]),
        ("softcap(x, cap=30.0)", [-INF, 0.0, 1e30, INF]),
    ],
)
def test_the_ends_are_where_they_belong(op, at):
    want, got = both(op, torch.tensor(at))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", ["silu(x)", "gelu(x)", "mish(x)", "softplus(x)", "expm1(x)", "rsqrt(x)"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(op, dtype):
    x = torch.linspace(0.01, 6, 500).to(dtype)
    want, got = both(op, x.float())[0].to(dtype), both(op, x)[1]
    assert (want != got).float().mean() < 0.01, "another last bit is rare where one rounding is all"


def test_every_rule_is_shown():
    shown = {
        op
        for _, _, blocks in headings(Path(__file__).with_name("decompose.md"))
        for op in DECOMPOSED
        if f" = {op}(" in blocks[0].text
    }
    assert shown == set(DECOMPOSED)


@pytest.mark.parametrize("experts", ["dense", "gathered"])
def test_an_expert_that_overflows_leaves_tokens_alone_that_did_not_choose_it(experts):
    m = parse(
        "def main(x: f16[T, 4], i: i32[T, 1], p: f16[T, 1], up: f16[2, 4, 4], down: f16[2, 4, 2]):\n"
        "    y = moe(x, i, p, up, down)\n    return y\n"
    )
    after, _ = run_pipeline(m, f"decompose(experts={experts})")
    up = torch.ones(2, 4, 4, dtype=torch.float16)
    up[1] = 60000
    given = (
        torch.ones(3, 4, dtype=torch.float16),
        torch.zeros(3, 1, dtype=torch.int32),
        torch.ones(3, 1, dtype=torch.float16),
        up,
        torch.ones(2, 4, 2, dtype=torch.float16),
    )
    got = Interpreter(after)(*given)[0]
    assert got.isfinite().all()
    torch.testing.assert_close(got, Interpreter(m)(*given)[0])


ARCHITECTURES = (
    "gpt_oss",
    "longcat_flash",
    "deepseek_v3",
    "qwen3_next",
    "apertus",
    "llama4_text",
    "mamba2",
    "dbrx",
)


@pytest.mark.parametrize(
    "name", [n if n == "longcat_flash" else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES]
)
def test_a_traced_model_means_the_same_in_either_form_of_experts(name):
    specimen = Specimen.of(name)
    traced, _ = import_tiny(specimen.config, specimen.model)
    fused, _ = run_pipeline(
        traced, "canonicalize, raise, canonicalize, outline, absorb-mla, fuse-mlp, fuse-moe, fuse-norm"
    )
    for experts in ("dense", "gathered"):
        p = Decompose(experts=experts)
        after, _ = run_pipeline(fused, [p])
        left = {n.op.name for f in after.funcs.values() for n in f.nodes} & set(DECOMPOSED)
        assert not left
        report = compare(fused, after, p, LiveCheckpoint(specimen.model))
        assert report.ok, report
