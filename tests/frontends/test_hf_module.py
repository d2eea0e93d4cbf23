"""A plain ``nn.Module`` from Python: irloom finds its attention and gives it a cache.

Each module here is written as its author would, and served by the same engine as a model of the library.
"""

from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irloom
from irloom.frontends.hf import trace_hf
from irloom.frontends.hf.module import LiveModule
from irloom.ir.errors import CheckpointError, TraceError
from tests.tiny import VOCAB, tokenizer

HEADS, KV, DIM, CONTEXT = 4, 2, 16, 96
HIDDEN = HEADS * DIM


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class LlamaBlock(nn.Module):
    """Grouped queries by repeat_interleave, SDPA, a gated MLP; ``rotate`` is the model's own rope."""

    def __init__(self, rotate: Any) -> None:
        super().__init__()
        self.rotate = rotate
        self.norm_1, self.norm_2 = Rms(), Rms()
        self.wq, self.wo = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.wk, self.wv = (nn.Linear(HIDDEN, KV * DIM, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(HIDDEN, 96, bias=False) for _ in range(2))
        self.w2 = nn.Linear(96, HIDDEN, bias=False)

    def forward(self, x: Tensor, angles: Any) -> Tensor:
        b, t, _ = x.shape
        h = self.norm_1(x)
        q, k, v = (w(h).view(b, t, -1, DIM) for w in (self.wq, self.wk, self.wv))
        q, k = self.rotate(q, angles), self.rotate(k, angles)
        k, v = (y.repeat_interleave(HEADS // KV, dim=2) for y in (k, v))
        y = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True)
        x = x + self.wo(y.transpose(1, 2).reshape(b, t, -1))
        h = self.norm_2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


FREQUENCIES = 1.0 / 10000.0 ** (torch.arange(0, DIM, 2).float() / DIM)


class Llama(nn.Module):
    """No config; positions are given, cos and sin computed from them."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(LlamaBlock(self.rotate) for _ in range(2))
        self.norm, self.head = Rms(), nn.Linear(HIDDEN, VOCAB, bias=False)
        self.register_buffer("frequencies", FREQUENCIES.clone(), persistent=False)

    @staticmethod
    def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (a[:, :, None] for a in angles)
        half = torch.cat((-x[..., DIM // 2 :], x[..., : DIM // 2]), dim=-1)
        return (x * cos + half * sin).type_as(x)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        angles = position_ids[..., None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, (angles.cos(), angles.sin()))
        return self.head(self.norm(x))


class Flat(nn.Module):
    """No batch dim: ids [T], and a mask made from positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.at = nn.Embedding(CONTEXT, HIDDEN)
        self.q, self.k, self.v = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.head = nn.Linear(HIDDEN, VOCAB)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        (t,) = ids.shape
        x = self.embed(ids) + self.at(positions)
        q, k, v = (w(x).view(t, HEADS, DIM).transpose(0, 1) for w in (self.q, self.k, self.v))
        seen = positions[:, None] >= positions[None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.head(x + y.transpose(0, 1).reshape(t, HIDDEN))


class Complex(nn.Module):
    """As Meta wrote Llama: complex rotations out of a table, a mask of minus infinities, heads expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(LlamaBlock(self.rotate) for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        angles = torch.outer(torch.arange(CONTEXT).float(), FREQUENCIES)
        self.turns = torch.polar(torch.ones_like(angles), angles)
        for layer in self.layers:
            layer.forward = MethodType(spelled_block, layer)

    @staticmethod
    def rotate(x: Tensor, turns: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).type_as(x)

    def forward(self, tokens: Tensor, past_key_values: Any = None) -> dict[str, Tensor]:
        x, t = self.embed(tokens), tokens.shape[1]
        mask = torch.full((t, t), float("-inf")).triu(1).type_as(x)
        for layer in self.layers:
            x = layer(x, self.turns[:t], mask)
        return {"hidden": x, "logits": self.head(x)}


def spelled_block(self: LlamaBlock, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
    """``LlamaBlock`` with attention in single steps."""
    b, t, _ = x.shape
    h = self.norm_1(x)
    q, k, v = (w(h).view(b, t, -1, DIM) for w in (self.wq, self.wk, self.wv))
    q, k = self.rotate(q, turns), self.rotate(k, turns)
    k, v = (y[:, :, :, None].expand(b, t, KV, HEADS // KV, DIM).reshape(b, t, HEADS, DIM) for y in (k, v))
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    scores = (q @ k.transpose(2, 3) / DIM**0.5 + mask).float().softmax(dim=-1).type_as(q)
    return x + self.wo((scores @ v).transpose(1, 2).reshape(b, t, -1))


class DenseExperts(nn.Module):
    """Every expert runs on every token; routing weights are scattered over them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.gate = nn.Linear(HIDDEN, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(HIDDEN, 32), nn.ELU()) for _ in range(3))
        self.head = nn.Linear(32, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        h = x.unflatten(-1, (HEADS, DIM)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(h, h, h, is_causal=True).transpose(1, 2).flatten(2)
        weight, index = self.gate(x).softmax(-1).topk(2)
        share = torch.zeros(*x.shape[:-1], 3).scatter(-1, index, weight)
        return self.head(sum(share[..., [i]] * expert(x) for i, expert in enumerate(self.experts)))


MODELS: dict[str, Any] = {
    "llama": Llama,
    "no batch": Flat,
    "complex": Complex,
    "dense experts": DenseExperts,
}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = MODELS[name]()
        for param in model.parameters():
            if param.ndim > 1:
                param.data.normal_(0, 0.15)
    return model


def said(model: nn.Module, ids: list[int], count: int) -> list[int]:
    """Greedy tokens, each by a full forward of the module itself."""
    model.eval()
    ids = list(ids)
    for _ in range(count):
        tensor, at = torch.tensor(ids), torch.arange(len(ids))
        with torch.no_grad():
            if isinstance(model, Flat):
                logits = model(tensor, at)
            elif isinstance(model, Llama):
                logits = model(tensor[None], at[None])[0]
            else:
                out = model(tensor[None])
                logits = (out["logits"] if isinstance(out, dict) else out)[0]
        ids.append(int(logits[-1].argmax()))
    return ids[-count:]


PROMPTS = [[5, 17, 200, 9, 31], [7], list(range(10, 40))]
GREEDY = irloom.SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_module_answers_as_it_does_itself(name):
    """Served with caches, in chunks and together; the module is called with all tokens each time."""
    model = made(name)
    llm = irloom.LLM(model, threads=1, max_tokens=16)
    told = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], GREEDY)
    assert [o.token_ids for o in told] == [said(model, p, 10) for p in PROMPTS]


@pytest.mark.parametrize("name", MODELS)
def test_its_attention_has_a_cache_and_its_rope_and_norms_are_model_ops(name):
    module, _ = irloom.run_pipeline(
        trace_hf(made(name), check=False), "canonicalize, raise, outline, kv-cache"
    )
    text = irloom.show(module)
    assert "paged_attention(" in text
    assert ("softmax(" in text) == (name == "dense experts")  # of its gate
    assert ("rope(" in text) == (name == "llama")  # one out of a table stays what it is
    assert ("rms_norm(" in text) == (name in ("llama", "complex"))


def test_grouped_queries_are_seen_through_their_copies():
    """The cache holds the two heads that there are, not the four that SDPA is given."""
    module, _ = irloom.run_pipeline(trace_hf(made("llama"), check=False), "canonicalize, raise, kv-cache")
    caches = [p.type for p in module.main.params if "paged" in str(p.type)]
    assert len(caches) == 2
    assert all(f"P, {KV}, {DIM}" in str(kind) for kind in caches)


def test_prompts_are_text_when_a_tokenizer_is_given(tmp_path):
    model = made("llama")
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    llm = irloom.LLM(model, tokenizer=tokenizer(), threads=1)
    (told,) = llm.generate(["once upon a time"], GREEDY)
    assert told.token_ids == said(model, tokenizer().encode("once upon a time").ids, 10)
    engine = irloom.compile(model, tokenizer=tmp_path, out=tmp_path / "engine")
    assert irloom.LLM(engine, threads=1).generate(["once upon a time"], GREEDY)[0].text == told.text
    with pytest.raises(CheckpointError, match="has a tokenizer of its own"):
        irloom.LLM(tmp_path, tokenizer=tokenizer())


def test_without_a_tokenizer_prompts_are_ids():
    llm = irloom.LLM(made("no batch"), threads=1)
    with pytest.raises(irloom.RequestError, match="no tokenizer was given with the module"):
        llm.generate(["once"], GREEDY)


def test_a_sequence_is_no_longer_than_what_holds_its_positions():
    facts = {name: _facts(made(name)) for name in MODELS}
    assert facts["no batch"].max_context == CONTEXT  # by its table, it has no config
    assert facts["complex"].max_context == CONTEXT


def _facts(model: nn.Module) -> Any:
    live = LiveModule(model, SimpleNamespace(eos_token_id=None))
    live.trace(live.path, irloom.frontends.core.TraceOptions(check=False))
    return live.facts(live.path)


def test_a_module_in_bf16_is_traced_as_it_is_or_in_another_element():
    model = made("llama").to(torch.bfloat16)
    assert "bf16[T, 64]" in irloom.show(irloom.trace(model))
    assert "bf16[T, 64]" not in irloom.show(irloom.trace(model, dtype="f32"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_module_keeps_its_mode_and_is_traced_without_dropout():
    model = Dropping()
    assert "dropout" not in irloom.show(irloom.trace(model))
    assert model.drop.training


class Dropping(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.drop(super().forward(ids, positions))


class Counting(Llama):
    """Keeps a state between calls."""

    calls = 0

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input_ids, position_ids) * self.calls


def test_a_module_whose_own_logits_differ_from_its_trace_is_refused():
    with pytest.raises(TraceError, match=r"Counting: logits of its trace differ from its own by"):
        irloom.trace(Counting())


class LastOnly(Llama):
    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return super().forward(input_ids, position_ids)[:, [-1]]


def test_logits_of_the_last_token_only_are_refused():
    with pytest.raises(TraceError, match=r"LastOnly gives \[1, 1, 320\] for 5 tokens, not logits of every"):
        irloom.trace(LastOnly())


class Wanting(nn.Module):
    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        return input_ids * mask


def test_an_input_that_irloom_does_not_give_is_named():
    with pytest.raises(TraceError, match=r"Wanting\.forward wants `mask`"):
        irloom.trace(Wanting())


class Bidirectional(Flat):
    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (w(x).view(-1, HEADS, DIM).transpose(0, 1) for w in (self.q, self.k, self.v))
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, HIDDEN))


def test_attention_to_later_tokens_is_refused_at_its_line():
    with pytest.raises(TraceError, match="attention sees later tokens") as refused:
        irloom.trace(Bidirectional())
    assert "in Bidirectional (Bidirectional)" in str(refused.value)
    assert "test_hf_module.py:" in str(refused.value)


def test_what_has_no_weights_is_not_compiled(tmp_path):
    with pytest.raises(TraceError, match="dict is no model with weights"):
        irloom.compile({}, out=tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
