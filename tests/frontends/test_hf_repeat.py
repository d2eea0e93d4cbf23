"""Layers that are alike are run once in a capture, and the trace is that of all layers.

Every test traces a model twice, with repeats and with every layer run, and compares the two programs.
"""

import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from irloom.frontends.hf import capture as capturing
from irloom.frontends.hf.capture import capture
from irloom.frontends.hf.importer import import_graph
from irloom.frontends.hf.repeat import find_layers
from irloom.frontends.hf.skeleton import skeleton
from irloom.ir.graph import Module
from irloom.ir.show import show

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING, FULL = "sliding_attention", "full_attention"
LIBRARY = {
    "llama": ("LlamaConfig", {**SMALL, "num_hidden_layers": 6}),
    "gemma 3, local and global": (
        "Gemma3TextConfig",
        {**SMALL, "num_hidden_layers": 8, "head_dim": 8, "sliding_window": 8,
         "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL, SLIDING, SLIDING, FULL]},
    ),
    "smollm 3, no rotation in every third": (
        "SmolLM3Config",
        {**SMALL, "num_hidden_layers": 9, "no_rope_layer_interval": 3},
    ),
    "qwen 3 next, delta rule and attention": (
        "Qwen3NextConfig",
        {**SMALL, "num_hidden_layers": 8, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "gpt 2": (
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 5, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
}  # fmt: skip


@pytest.fixture
def notes(caplog):
    caplog.set_level(logging.INFO, logger="irloom.trace")
    return caplog


def both(model: nn.Module) -> tuple[Module, Module]:
    """The program with repeats, and the one with every layer run."""
    a, b = (import_graph(capture(model, repeats=on), model, "m") for on in (True, False))
    return a, b


@pytest.mark.parametrize("name", LIBRARY)
def test_a_library_model_is_traced_as_if_every_layer_ran(name, notes):
    cls, settings = LIBRARY[name]
    with_repeats, whole = both(skeleton(getattr(transformers, cls)(**settings), torch.float32))
    assert show(with_repeats) == show(whole)
    assert with_repeats == whole
    assert not notes.messages, "nothing fell back"


def test_two_of_a_kind_are_run(monkeypatch):
    seen = []
    export = capturing._export

    def spy(wrapper, args, layers):
        seen.append(layers)
        return export(wrapper, args, layers)

    monkeypatch.setattr(capturing, "_export", spy)
    cls, settings = LIBRARY["gemma 3, local and global"]
    capture(skeleton(getattr(transformers, cls)(**settings), torch.float32))
    (repeats,) = seen
    ran = [x.path.rpartition(".")[2] for i, x in enumerate(repeats.calls) if i not in repeats.marked]
    assert [x.path.rpartition(".")[2] for x in repeats.calls] == list("01234567")
    assert ran == ["0", "2", "6", "7"]


HIDDEN: list[Tensor] = []


class Stack(nn.Module):
    """Embedding, layers, head: the smallest model whose layers the tests below make talk to each other."""

    def __init__(self, layer: type[nn.Module], count: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.layers = nn.ModuleList([layer(i) for i in range(count)])
        self.head = nn.Linear(8, 16)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        HIDDEN.clear()
        x = self.embed(input_ids)
        state: dict[str, Tensor] = {}
        for layer in self.layers:
            x = layer(x, state)
        return self.head(x)


class Plain(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        return x + self.inner(x) * torch.tensor([2.0] * 8)


class Numbered(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        return x + self.inner(x) * (1.0 / (self.layer_idx + 1))


class Writes(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        state["last"] = x
        return x + self.inner(x)


class Scaled(Plain):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.scale = float(number)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        return x + self.inner(x) * self.scale


class Aside(Plain):
    """Reads what the layer before left in a global list."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        before = HIDDEN.pop() if HIDDEN else x
        HIDDEN.append(self.inner(x))
        return x + before


def test_each_copy_has_constants_of_its_own(notes):
    with_repeats, whole = both(Stack(Plain))
    assert len(whole.consts) == 6
    assert with_repeats == whole and not notes.messages


def test_weights_that_layers_share_stay_shared():
    model = Stack(Plain)
    for layer in model.layers[1::2]:
        layer.inner = model.layers[1].inner
    with_repeats, whole = both(model)
    assert sum(p.type.rank == 2 for p in whole.main.weights) == 2 + 4
    assert with_repeats == whole


def test_layers_with_other_attributes_are_not_alike():
    assert len(find_layers(Stack(Plain))) == 6
    assert not find_layers(Stack(Scaled))
    assert not find_layers(Stack(Plain, count=2)), "the first and the last run in any case"


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Numbered, "model.layers.0 and model.layers.5 differ"),
        (Writes, "writes into a list or dict among its arguments"),
        (Aside, "is read behind its back"),
    ],
)
def test_layers_that_talk_behind_their_operands_all_run(layer, why, notes):
    with_repeats, whole = both(Stack(layer))
    assert with_repeats == whole
    assert len(notes.messages) == 1 and why in notes.messages[0]
