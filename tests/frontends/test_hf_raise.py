"""Every promised family raises fully, means the same afterwards, and decodes token by token through its
caches.
"""

import pytest
import torch

from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import library_logits
from irloom.ir.elem import CACHES
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter, cache_types, empty_cache
from irloom.ir.parse import parse
from irloom.ir.seqs import Seqs
from irloom.ir.show import show
from irloom.passes.pipeline import run_pipeline

MODEL_OPS = {
    "positions", "embedding", "linear", "rms_norm", "layer_norm", "rope", "attention", "reshape", "split",
    "slice", "add", "mul", "div", "silu", "gelu", "softcap", "cast",
}  # fmt: skip
"""What is left in a raised model: no sine, no root, no power, no join of halves."""

PAGES, PAGE = 8, 16


@pytest.fixture(scope="module")
def raised(family) -> Module:
    module, _ = run_pipeline(family.module, "canonicalize, raise")
    return module


def test_only_model_ops_are_left(family, raised):
    assert {n.op.name for n in raised.main.nodes} <= MODEL_OPS
    ropes = [n for n in raised.main.nodes if n.op.name == "rope"]
    turned = {"gpt2": 0, "cohere2": 2}.get(family.name, 4)
    assert len(ropes) == turned, "a query and a key a layer; Cohere 2 turns only in layers with a window"
    assert {n.attrs["interleaved"] for n in ropes} <= {family.name.startswith("cohere")}
    assert {n.attrs["rotary"] for n in ropes} <= {4 if family.name == "phi3" else None}
    assert all((len(n.args) == 3) == (family.name == "llama3") for n in ropes), (
        "other frequencies are defaults"
    )


def test_the_raised_program_means_the_same(family, raised):
    torch.testing.assert_close(family.run(family.parts, raised), torch.cat(family.logits), atol=1e-4, rtol=0)


def test_its_text_reads_back(raised):
    assert parse(show(raised)) == raised


def test_norms_are_called_as_their_modules(raised):
    names = {n.result.name for n in raised.main.nodes if n.op.name in ("rms_norm", "layer_norm")}
    assert not [name for name in names if name.startswith(("mul", "add", "cast"))]


def test_token_by_token_through_the_caches(family):
    """A prompt in two chunks, then single tokens, beside a second sequence that joins late."""
    module, _ = run_pipeline(family.module, "canonicalize, raise, outline, kv-cache")
    decoder = Decoder(module, LiveCheckpoint(family.model))
    a, b = family.parts[1], family.parts[0]
    got = {0: [], 1: []}
    for step in ([(0, 9)], [(0, 4), (1, 3)], *[[(1, 1), (0, 1)]] * 2, *[[(0, 1)]] * 15):
        for row, logits in zip(step, decoder.step(step, {0: a, 1: b}), strict=True):
            got[row[0]].append(logits)
    with torch.inference_mode():
        for i, ids in ((0, a), (1, b)):
            out = torch.cat(got[i])
            torch.testing.assert_close(out, library_logits(family.model, ids)[: len(out)], atol=2e-4, rtol=0)


class Decoder:
    """Runs a cached program step by step; a row of a step is (sequence, how many of its tokens come)."""

    def __init__(self, module: Module, weights: LiveCheckpoint) -> None:
        self.main, self.run = module.main, Interpreter(module, weights)
        types = cache_types(module)
        self.caches = {key: empty_cache(t, PAGES) for key, t in types.items()}
        pages = torch.randperm(PAGES, generator=torch.Generator().manual_seed(0)).reshape(2, -1)
        self.pages = pages.int()
        self.pools = {cache.pool for cache in self.caches.values()}
        self.done = [0, 0]

    def step(self, rows, tokens):
        order = torch.tensor([s for s, _ in rows])
        ids = torch.cat([tokens[s][self.done[s] : self.done[s] + n] for s, n in rows]).int()
        seqs = Seqs.of(
            [n for _, n in rows],
            [self.done[s] for s, _ in rows],
            dict.fromkeys(self.pools, self.pages[order]),
        )
        stack = any(p.type.elem == CACHES for p in self.main.data)
        caches = [list(self.caches.values())] if stack else list(self.caches.values())
        logits, *new = self.run(ids, seqs, *caches)
        self.caches = dict(zip(self.caches, new[0] if stack else new, strict=True))
        for s, n in rows:
            self.done[s] += n
        return logits.split([n for _, n in rows])
