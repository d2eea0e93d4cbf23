"""The interpreter gives on a GPU what it gives on the CPU, caches and ragged batches included."""

import pytest
import torch

from irloom.driver import Choice
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import randomized
from irloom.frontends.hf.trace import trace_config
from irloom.ir.interp import Interpreter, cache_types, empty_cache
from irloom.ir.seqs import PagedCache, Seqs
from irloom.passes import run_pipeline
from irloom.verify import How, verify
from tests.tiny import gemma_config, llama_config

PIPELINE = "canonicalize, raise, outline, gather-logits, fuse-qkv, fuse-mlp, fuse-norm, kv-cache, kv-plan"


def on(device, cache):
    return PagedCache(cache.k.to(device), cache.v.to(device), cache.pool)


@pytest.mark.parametrize("config", [llama_config, gemma_config])
def test_cuda_equals_cpu(config):
    m, _ = run_pipeline(trace_config(config(), TraceOptions(check=False)), PIPELINE)
    model = randomized(config())
    caches = [empty_cache(t, 8) for t in cache_types(m).values()]
    tables = {c.pool: torch.tensor([[1, 3], [2, 5]]) for c in caches}
    ids = torch.arange(30, 30 + 23, dtype=torch.int32)
    steps = [(ids, Seqs.of([17, 6], tables=tables)), (ids[:2], Seqs.of([1, 1], [17, 6], tables))]
    told = {}
    for device in ("cpu", "cuda"):
        run = Interpreter(m, LiveCheckpoint(model), device)
        state = [on(device, c) for c in caches]
        logits = torch.empty(0)
        for step, seqs in steps:
            logits, state = run(step.to(device), seqs.to(device), state)
        told[device] = logits.cpu()
    torch.testing.assert_close(told["cuda"], told["cpu"], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("config", [llama_config, gemma_config])
def test_every_pass_is_verified_on_cuda(config, tmp_path):
    (tmp_path / "config.json").write_text(config().to_json_string(use_diff=False))
    for dtype in ("f32", "bf16"):
        found = verify(tmp_path, Choice("reference"), How(device="cuda", random=True, dtype=dtype))
        assert found.ok, [str(row.error or row.compared) for row in found.rows if not row.ok]
        assert any(row.compared for row in found.rows)
