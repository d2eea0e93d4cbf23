"""What recurrent layers come to: few launches, none that asks the host, and the logits of the interpreter."""

from __future__ import annotations

import math

import pytest

from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import Launch, Program
from irloom.driver.core import trace
from irloom.passes import run_pipeline
from irloom.zoo.models import tiny


def program(name: str) -> Program:
    """Of a tiny model in bf16."""
    return lower(run_pipeline(trace(tiny(name), "bf16"), [*CudaBackend.pipeline])[0])


def launch_of(p: Program, kernel: str) -> Launch:
    """The first launch of a kernel."""
    return next(s for f in p.functions.values() for s in f.launches if s.kernel == kernel)


def test_mamba_2_is_one_convolution_and_one_scan():
    p = program("mamba2")
    assert not p.exact and not p.fallbacks
    scan = launch_of(p, "carried_ssd_scan")
    assert [a and a.name for a in scan.args[-2:]] == ["mixer_dt_bias", "mixer_D"]  # type: ignore[union-attr]
    assert scan.attrs == {"soft": True}
    assert launch_of(p, "carried_causal_conv").attrs == {"act": "silu"}
    assert "softplus" not in str(p)


def test_the_delta_rule_reads_the_convolution():
    """Norms, casts and repeated heads are gone, those of the output aside."""
    p = program("qwen3_next")
    rule = launch_of(p, "carried_gated_delta")
    assert rule.attrs == {"unit": 1e-6, "scale": 0.25}
    q, k, v = rule.values[:3]
    assert [math.prod(x.type.dims[1:]) for x in (q, k, v)] == [2 * 16, 2 * 16, 4 * 16]
    assert {x.type.plain.name for x in (rule.results[0], q, k, v)} == {"bf16"}
    assert "l2_norm" not in p.fallbacks and "permute" not in p.fallbacks


@pytest.mark.parametrize("name", ["jamba", "kimi_linear"])
def test_no_recurrence_is_left_to_its_body(name):
    p = program(name)
    assert not [op for op in p.fallbacks if op.startswith("carried_")]
