"""Blocks that are replaced as a whole: the model computes the same, or says why it cannot be traced."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch

from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import LENGTHS, check_architecture, import_tiny, library_logits
from irloom.ir.errors import TraceError
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.zoo.models import names, tiny


def ops_of(config: Any) -> Counter[str]:
    """The ops of a config's program, after packed sequences were found to come out as from the library."""
    module, model = import_tiny(config)
    ids = (
        5 + torch.randperm(config.vocab_size - 5, generator=torch.Generator().manual_seed(1))[: sum(LENGTHS)]
    )
    with torch.inference_mode():
        (ours,) = Interpreter(module, LiveCheckpoint(model))(ids.int(), Seqs.of(LENGTHS))
        expected = torch.cat([library_logits(model, part) for part in ids.split(LENGTHS)])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    return Counter(n.op.name for n in module.main.nodes)


@pytest.mark.parametrize(("keep", "indexed"), [(8, True), (512, False)])
def test_doge_sees_the_keys_that_count_most(keep, indexed):
    """Where a sequence cannot get longer than what is kept, nothing is chosen.

    Equal tokens count the same, and either may be chosen; here there are none.
    """
    config = tiny("doge")
    config.keep_window_size = keep
    ops, layers = ops_of(config), config.num_hidden_layers
    assert ops["sparse_index"] == (config.num_key_value_heads * layers if indexed else 0)
    assert ops["attention"] == layers


def test_xmod_takes_the_adapter_of_its_default_language():
    config = tiny("xmod")
    adapters = ops_of(config)["linear"]
    config.languages, config.default_language = ["de_DE"], "de_DE"
    assert ops_of(config)["linear"] == adapters


def test_inklings_biases_are_by_distance():
    found = ops_of(tiny("inkling_text"))
    assert found["attention"] == tiny("inkling_text").num_hidden_layers
    assert "token_shift" not in found


@pytest.mark.skipif("inkling2_text" not in names(), reason="not in this transformers")
def test_the_second_inkling_has_convolutions_with_weights_for_each_token():
    assert ops_of(tiny("inkling2_text"))["token_shift"]


def test_xlnet_is_a_decoder_where_it_looks_back_only():
    config = tiny("xlnet")
    assert ops_of(config)["attention"] == config.n_layer
    for field, value in (("attn_type", "bi"), ("same_length", True), ("clamp_len", 5)):
        config = tiny("xlnet")
        setattr(config, field, value)
        with pytest.raises(TraceError, match=r"XLNetModel (attends to later tokens|clamps distances)"):
            import_tiny(config)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("blt", r"BltModel cuts tokens into patches .*\n.*\n.*modeling_blt\.py:\d+"),
        ("reformer", r"that a random hash sorts next to it.*\n.*\n.*modeling_reformer\.py:\d+"),
        (
            "prophetnet",
            r"ProphetNetForCausalLM is no decoder as it is configured: logits depend on later tokens",
        ),
    ],
)
def test_what_values_decide_is_refused_with_the_reason(name, why):
    with pytest.raises(TraceError) as error:
        check_architecture(tiny(name))
    assert re.search(why, str(error.value))
