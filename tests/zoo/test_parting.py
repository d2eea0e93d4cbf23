"""Where numbers differ, the first block that computes others is named, with its line."""

import re
from typing import Any

import pytest
from torch import nn

from irloom.frontends.hf.selfcheck import import_tiny
from irloom.zoo.examine import reason
from irloom.zoo.models import Specimen
from irloom.zoo.parting import parting


@pytest.fixture(scope="module")
def traced():
    """A specimen, and its program."""
    specimen: Any = Specimen.of("llama")
    return specimen, import_tiny(specimen.config, specimen.model)[0]


def place(specimen, module):
    return parting(specimen, module, [specimen.draw(n, n) for n in (9, 4)], tolerance=1e-4)


def test_programs_that_agree_part_nowhere(traced):
    assert place(*traced) == ""


def test_the_innermost_block_that_computes_something_else_is_named(traced, monkeypatch):
    specimen, _ = traced
    monkeypatch.setitem(specimen.model.model.layers[1].mlp._modules, "act_fn", nn.Tanh())
    assert re.fullmatch(r"in model\.layers\.1\.mlp \(LlamaMLP\), modeling_llama\.py:\d+", place(*traced))


def test_what_a_block_does_to_the_result_of_an_inner_one_is_its_own(traced, monkeypatch):
    norm = traced[0].model.model.norm
    monkeypatch.setattr(norm, "forward", lambda x, forward=norm.forward: 2 * forward(x))
    assert "in model.norm (LlamaRMSNorm), modeling_llama.py:" in place(*traced)


def test_an_error_of_the_library_is_placed_in_its_block(traced, monkeypatch):
    specimen, _ = traced
    monkeypatch.delitem(specimen.model.model.layers[1].self_attn._modules, "o_proj")
    with pytest.raises(AttributeError) as caught:
        specimen.logits(specimen.draw(4, 0))
    assert re.search(r"'o_proj' \(in LlamaAttention, modeling_llama\.py:\d+\)$", reason(caught.value))
