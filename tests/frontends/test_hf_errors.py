"""What cannot be traced is refused with the op or state, the module path and the source line."""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, ViTConfig

from irloom.frontends.hf import trace_hf
from irloom.frontends.hf.cache import ProbingCache
from irloom.ir.errors import TraceError

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}


class Model(nn.Module):
    """Embeds tokens, applies ``body`` in a block, and gives logits."""

    def __init__(self, body):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.block = Block(body)
        self.head = nn.Linear(16, 32, bias=False)

    def forward(self, input_ids, position_ids):
        return self.head(self.block(self.embed(input_ids)))


class Block(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return self.body(x * self.scale)


def traced(body):
    return trace_hf(Model(body).eval())


def refused(body) -> str:
    with pytest.raises(TraceError) as error:
        traced(body)
    return str(error.value)


def test_an_unknown_op_is_named_with_its_place():
    message = refused(lambda x: torch.special.zeta(x.abs() + 2, x.abs()))
    assert "op `aten.special_zeta.default` has no translation" in message
    assert 'hint: translate it with @irloom.translates("aten.special_zeta.default"), or replace' in message
    assert re.search(r"in block \(Block\), .*test_hf_errors\.py:\d+$", message)


def test_looking_across_tokens_is_refused():
    message = refused(lambda x: x.mean(1, keepdim=True) + x)
    assert "a reduction over dim 1 of f32[T, 16] mixes tokens of different sequences" in message
    assert "hint: replace the block: @irloom.replaces(" in message


def test_bits_of_integers_are_not_taken_for_logic():
    message = refused(lambda x: x + (x.int() & 3))
    assert "of integers has no translation" in message


def test_a_branch_on_data_is_refused_where_it_stands():
    message = refused(lambda x: x if x.sum() > 0 else -x)
    assert "x if x.sum() > 0 else -x)` depends on the values of a tensor" in message
    assert re.search(r"in block \(Block\), .*test_hf_errors\.py:\d+$", message)


BRANCHES = {
    "a number out of a tensor": lambda x: x if x.max().item() > 3 else -x,
    "a loop over what is found": lambda x: sum((x[0, :, 0] > 0).nonzero(), x),
    "a trip through numpy": lambda x: x + torch.from_numpy(x.numpy()),
    "a loop over tokens": lambda x: torch.stack([x[:, t] for t in range(x.shape[1])], 1),
    "a branch on a length": lambda x: x + 1 if x.shape[1] > 20 else x,
}


@pytest.mark.parametrize("body", BRANCHES.values(), ids=BRANCHES)
def test_code_that_asks_for_values_names_its_line_and_the_block_to_replace(body):
    message = refused(body)
    line = inspect.getsource(body).strip()
    assert f"Model cannot be traced: `{line}`" in message
    assert 'hint: replace the block: @irloom.replaces("Block") on a function (self, x)' in message
    assert re.search(r"in block \(Block\), .*test_hf_errors\.py:\d+$", message)


def test_a_size_that_depends_on_values_is_refused():
    assert "a size depends on the values" in refused(lambda x: x + x[x > 0].sum())


def test_what_a_cache_layer_holds_is_refused_by_name():
    layers = ProbingCache(4).layers
    assert len(layers) == 0
    with pytest.raises(TraceError, match=r"what a cache layer holds \(`past_key_values\.layers`\)"):
        layers[0]


def test_a_rope_that_grows_with_the_text_stays_as_for_short_ones():
    def trace(**rope: Any) -> str:
        return str(trace_hf(LlamaConfig(**SMALL, num_attention_heads=2, rope_parameters=rope)))

    grows = trace(rope_type="dynamic", rope_theta=1e4, factor=2.0)
    assert grows == trace(rope_type="default", rope_theta=1e4)


def test_a_config_that_is_no_language_model_is_refused():
    with pytest.raises(TraceError) as refused:
        trace_hf(ViTConfig())
    assert str(refused.value) == (
        "`vit` has no causal language model in this transformers\n"
        "hint: irloom takes models that continue text; if it is one, pass the nn.Module itself"
    )
