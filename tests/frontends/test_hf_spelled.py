"""Attention that a model spells out becomes one op, whatever the spelling.

Logits of a packed batch, and of decoding through caches, are those of the model itself.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irloom.frontends.hf import trace_hf
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.ir.elem import Paged
from irloom.ir.errors import TraceError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter, empty_cache
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline

HEADS, KV, DIM, VOCAB = 4, 2, 8, 48
HIDDEN = HEADS * DIM
LENGTHS = (5, 30, 1, 9)
STEPS = ((3, 20, 1, 1), (1, 5, 0, 6), (1, 5, 0, 2))
"""Tokens that each sequence brings to each step: chunks of prompts and single tokens, mixed."""

PAGE, PAGES = 4, 40
Attend = Callable[..., Tensor]


class Model(nn.Module):
    """A model of one layer; ``attend`` maps q [1, H, T, D] and k, v [1, KV, T, D] to [1, H, T, D]."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.q, self.k, self.v = (nn.Linear(HIDDEN, n * DIM) for n in (HEADS, KV, KV))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        g = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1])
        self.register_buffer("tril", torch.ones(64, 64).tril().bool(), persistent=False)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, HEADS + 1), persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        q, k, v = (f(x).unflatten(-1, (-1, DIM)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = self.attend(self, q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + y)


def causal(scores: Tensor) -> Tensor:
    t = scores.shape[-1]
    return scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))


def repeat(x: Tensor, times: int = HEADS // KV) -> Tensor:
    """The library's own way to copy KV heads."""
    b, h, t, d = x.shape
    return x[:, :, None].expand(b, h, times, t, d).reshape(b, h * times, t, d)


def plain(m, q, k, v):
    return causal(q @ repeat(k).mT / math.sqrt(DIM)).softmax(-1) @ repeat(v)


def tril_buffer(m, q, k, v):
    t = q.shape[2]
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = torch.where(m.tril[None, None, :t, :t], torch.matmul(q, k.transpose(-1, -2)), torch.tensor(-1e4))
    return F.dropout(F.softmax(scores * 0.3, dim=-1), 0.1, m.training) @ v


def three_dims(m, q, k, v):
    """[B * H, T, D], the bias inside of baddbmm."""
    b, h, t, d = q.shape
    q, k, v = (x.reshape(b * h, t, d) for x in (q * d**-0.5, repeat(k), repeat(v)))
    bias = torch.full((t, t), torch.finfo(q.dtype).min).triu(1)[None].expand(b * h, t, t)
    return torch.bmm(torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1), v).view(b, h, t, d)


def einsum(m, q, k, v):
    """Tokens before heads, and f32 for the softmax."""
    q, k, v = (x.transpose(1, 2) for x in (q, repeat(k), repeat(v)))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).float() * DIM**-0.5
    return torch.einsum("bhqk,bkhd->bqhd", causal(scores).softmax(-1).to(q.dtype), v).transpose(1, 2)


def grouped(m, q, k, v):
    """No copies: five dims, the group broadcasts."""
    q = q.unflatten(1, (KV, HEADS // KV)) * 0.4
    return (causal(q @ k[:, :, None].mT).softmax(-1) @ v[:, :, None]).flatten(1, 2)


def softcap(m, q, k, v):
    scores = torch.tanh(q @ repeat(k).mT * 0.5 / 3.0) * 3.0
    return causal(scores).softmax(-1) @ repeat(v)


def clamped(m, q, k, v):
    t = q.shape[2]
    mask = torch.full((t, t), torch.finfo(torch.float32).min).triu(1)
    scores = torch.max(q @ repeat(k).mT + mask, torch.tensor(torch.finfo(torch.float32).min))
    return scores.softmax(-1) @ repeat(v)


def masked_like_its_scores(m, q, k, v):
    """XLM's: what is read of the scores is their shape, and they are changed in place."""
    scores = q @ repeat(k).mT
    later = torch.ones(scores.shape[-1], scores.shape[-1]).triu(1) == 1
    scores.masked_fill_(later.view(1, 1, *later.shape).expand_as(scores), torch.finfo(scores.dtype).min)
    return scores.softmax(-1).type_as(scores) @ repeat(v)


def window(m, q, k, v):
    at = torch.arange(q.shape[2])
    away = at[:, None] - at
    return (q @ repeat(k).mT).masked_fill((away < 0) | (away >= 7), -torch.inf).softmax(-1) @ repeat(v)


def chunked(m, q, k, v):
    at = torch.arange(q.shape[2])
    hidden = (at > at[:, None]) | (at // 6 != at[:, None] // 6)
    return (q @ repeat(k).mT - 1e4 * hidden).softmax(-1) @ repeat(v)


def alibi(m, q, k, v):
    """BLOOM's form: a slope times the key's position, which differs by a constant per row."""
    bias = m.slopes[:, None, None] * torch.arange(q.shape[2])
    return causal(q @ repeat(k).mT * 0.3 + bias).softmax(-1) @ repeat(v)


def sdpa_causal(m, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def sdpa_masked(m, q, k, v):
    t = q.shape[2]
    return F.scaled_dot_product_attention(q, repeat(k), repeat(v), attn_mask=m.tril[:t, :t], scale=0.2)


SPELLINGS: dict[Attend, dict[str, Any]] = {
    plain: {}, tril_buffer: {}, three_dims: {}, einsum: {}, grouped: {}, softcap: {"softcap": 3.0},
    clamped: {}, masked_like_its_scores: {}, window: {"window": 7}, chunked: {"chunk": 6}, alibi: {},
    sdpa_causal: {}, sdpa_masked: {},
}  # fmt: skip
"""How attention is spelled, and what the op must say of it."""


def attentions(module: Module) -> list[Any]:
    return [n for n in module.main.nodes if n.op.name == "attention"]


def prompts(vocab: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(5, vocab, (n,), generator=g) for n in LENGTHS]


def decoded(module: Module, model: nn.Module, parts: list[Tensor]) -> Tensor:
    """Logits of all tokens when the sequences come in chunks, with caches."""
    cached, _ = run_pipeline(module, f"kv-cache(page={PAGE})")
    types = [p.type for p in cached.main.data if isinstance(p.type.elem, Paged)]
    caches: list[Any] = [empty_cache(t, PAGES) for t in types]
    each = max(LENGTHS) // PAGE + 1
    table = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).int()[: 4 * each].view(4, each)
    done, rows = [0] * 4, [[] for _ in parts]
    for step in STEPS:
        now = [s for s in range(4) if step[s]]
        ids = torch.cat([parts[s][done[s] : done[s] + step[s]] for s in now]).int()
        tables = {t.elem.pool: table[now] for t in types if isinstance(t.elem, Paged)}
        logits, *caches = Interpreter(cached, LiveCheckpoint(model))(
            ids, Seqs.of([step[s] for s in now], [done[s] for s in now], tables), *caches
        )
        for s, part in zip(now, logits.split([step[s] for s in now]), strict=True):
            rows[s].append(part)
            done[s] += step[s]
    assert tuple(done) == LENGTHS
    return torch.cat([torch.cat(r) for r in rows])


def check(module: Module, model: nn.Module, parts: list[Tensor], expected: Tensor) -> None:
    """Packed in one batch, and token by token through caches: the logits are ``expected``."""
    (packed,) = Interpreter(module, LiveCheckpoint(model))(torch.cat(parts).int(), Seqs.of(LENGTHS))
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(packed / scale, expected / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded(module, model, parts) / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attend", SPELLINGS, ids=lambda f: f.__name__)
def test_attention_is_found_and_gets_a_cache(attend: Attend):
    model = Model(attend).eval().requires_grad_(False)
    module = trace_hf(model)
    (found,) = attentions(module)
    said = {k: found.attrs[k] for k in ("window", "chunk", "softcap")}
    assert said == {"window": None, "chunk": None, "softcap": None, **SPELLINGS[attend]}
    assert (len(found.args) == 6) == (attend is alibi)
    assert found.args[1].type.dims[1] == KV  # heads are cached once
    parts = prompts(VOCAB)
    expected = torch.cat([model(p[None], torch.arange(len(p))[None])[0] for p in parts])
    check(module, model, parts, expected)


def refusal(attend: Attend) -> str:
    with pytest.raises(TraceError) as error:
        trace_hf(Model(attend).eval())
    return str(error.value)


def test_what_is_no_decoder_is_refused():
    """A mask is read by its values, so its reason is about them."""
    assert "attention sees later tokens" in refusal(
        lambda m, q, k, v: (q @ repeat(k).mT).softmax(-1) @ repeat(v)
    )

    def distant(m, q, k, v):
        at = torch.arange(q.shape[2])
        return causal(q @ repeat(k).mT + (at - at[:, None]) ** 2).softmax(-1) @ repeat(v)

    assert "adds a bias to its scores that is not linear in distance" in refusal(distant)

    def strided(m, q, k, v):
        at = torch.arange(q.shape[2])
        odd = (at[:, None] - at) % 2 == 1
        return causal(q @ repeat(k).mT).masked_fill(odd, -torch.inf).softmax(-1) @ repeat(v)

    message = refusal(strided)
    assert "attention skips some of the tokens that it looks back to" in message
    assert "test_hf_spelled.py" in message


def test_scores_are_scaled_capped_and_masked_only():
    def squared(m, q, k, v):
        return causal((q @ repeat(k).mT).square()).softmax(-1) @ repeat(v)

    assert "changes its scores by more than scale, softcap, mask and bias" in refusal(squared)

    def halved(m, q, k, v):
        return causal(q @ repeat(k).mT).softmax(-1) / 2 @ repeat(v)

    assert "changes its weights after the softmax" in refusal(halved)


def test_a_softmax_over_features_is_none_of_it():
    def mixed(m, q, k, v):
        return plain(m, q, k, v) * q.softmax(-1)

    assert [n.op.name for n in trace_hf(Model(mixed).eval()).main.nodes].count("softmax") == 1


class Counting(nn.Module):
    """Takes no positions: ``number`` makes what is added to the embeddings of T tokens, [T, HIDDEN]."""

    def __init__(self, number: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.number, self.padding_idx = number, 1
        self.embed, self.places = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(64, HIDDEN)
        self.register_buffer("table", torch.arange(64.0)[:, None].expand(64, HIDDEN).sin(), persistent=False)
        self.register_buffer("ids", torch.arange(64)[None], persistent=False)
        self.register_buffer("types", torch.zeros(1, 64, dtype=torch.int64), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.number(self, input_ids)
        q = x.unflatten(-1, (HEADS, DIM)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        return (x + y.transpose(1, 2).flatten(2)) @ self.embed.weight.T


def by_range(m, ids):
    return m.places(torch.arange(ids.shape[1], device=ids.device))


def two_ahead(m, ids):
    """OPT's: a running sum of a mask of ones."""
    return m.places(torch.ones_like(ids).cumsum(1) - 1 + 2)


def without_padding(m, ids):
    """RoBERTa's: padding is not counted, and a packed batch has none."""
    mask = ids.ne(m.padding_idx).int()
    return m.places((mask.cumsum(1).type_as(mask) * mask).long() + m.padding_idx)


def slice_of_ids(m, ids):
    return m.places(m.ids[:, : ids.shape[1]])


def slice_of_weights(m, ids):
    return m.places.weight[3 : ids.shape[1] + 3]


def slice_of_a_table(m, ids):
    return m.table[None][:, : ids.shape[1]]


def made_in_place(m, ids):
    angle = torch.outer(torch.arange(ids.shape[1]).float(), 0.5 ** torch.arange(HIDDEN))
    return torch.where(torch.arange(HIDDEN) < 3, angle.sin(), angle.cos())


def token_types(m, ids):
    return m.places(m.types[:, : ids.shape[1]]) + by_range(m, ids)


COUNTS = [
    by_range, two_ahead, without_padding, slice_of_ids, slice_of_weights, slice_of_a_table, made_in_place,
    token_types,
]  # fmt: skip


@pytest.mark.parametrize("number", COUNTS, ids=lambda f: f.__name__)
def test_counted_tokens_are_positions(number: Callable[[Any, Tensor], Tensor]):
    """Every sequence of a packed batch starts over, and a later chunk goes on."""
    model = Counting(number).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1]))
    module = trace_hf(model)
    assert [n.op.name for n in module.main.nodes].count("positions") == 1
    parts = prompts(VOCAB)
    check(module, model, parts, torch.cat([model(p[None])[0] for p in parts]))


def test_a_count_that_is_no_position_is_refused():
    def from_the_length(m, ids):
        t = ids.shape[1]
        return m.places(torch.arange(t, 2 * t))

    with pytest.raises(
        TraceError, match=r"counts tokens from T to 2\*T, and not as their positions"
    ) as error:
        trace_hf(Counting(from_the_length).eval())
    assert "test_hf_spelled.py" in str(error.value)


def test_a_window_longer_than_what_was_traced_is_found_by_its_number():
    """However it is written: here as where a triangle starts."""

    def near(m, q, k, v):
        t = q.shape[2]
        hidden = ~torch.ones(t, t).triu(-699).bool()
        return causal(q @ repeat(k).mT).masked_fill(hidden, float("-inf")).softmax(-1) @ repeat(v)

    (found,) = attentions(trace_hf(Model(near).eval()))
    assert found.attrs["window"] == 700


class Hiding(Model):
    """Hides one id from all tokens."""

    def __init__(self, hidden: int, padding: int | None) -> None:
        super().__init__(lambda m, q, k, v: q)
        self.hidden = hidden
        self.embed = nn.Embedding(VOCAB, HIDDEN, padding_idx=padding)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        seen = (input_ids != self.hidden)[:, None, None]

        def attend(m, q, k, v):
            return causal((q @ repeat(k).mT).masked_fill(~seen, float("-inf"))).softmax(-1) @ repeat(v)

        self.attend = attend
        return super().forward(input_ids, position_ids)


def test_only_padding_is_taken_to_be_absent():
    (found,) = attentions(trace_hf(Hiding(7, padding=7).eval(), check=False))
    assert found.attrs["window"] is None
    with pytest.raises(TraceError, match="mixes tokens of different sequences"):
        trace_hf(Hiding(7, padding=None).eval())
