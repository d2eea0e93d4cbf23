"""Mixtures of experts: every kind of router and of expert is the library's, block by block and as a model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from irloom.frontends.core import TraceOptions
from irloom.frontends.hf import blocks, experts
from irloom.frontends.hf.blocks.core import REPLACEMENTS, Replacement, replaced_blocks, replaces
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import library_logits, randomized
from irloom.frontends.hf.trace import trace_config
from irloom.ir import ops
from irloom.ir.elem import ELEMS
from irloom.ir.errors import TraceError
from irloom.ir.graph import Module, Node, Param
from irloom.ir.interp import Interpreter
from irloom.ir.parse import parse
from irloom.ir.seqs import Seqs
from irloom.ir.weight_expr import Slice, Tensor, Transpose, WeightExpr
from irloom.passes.pipeline import run_pipeline

HIDDEN, EXPERTS, TOP = 32, 6, 3
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": HIDDEN, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP,
}  # fmt: skip


def small(name: str, **extra: Any) -> Any:
    return getattr(transformers, name)(**{**SMALL, **extra})


class TestBlocks:
    """Blocks alone, on the op's reference body: the library's loop over experts against ours."""

    @pytest.fixture(autouse=True)
    def body(self, monkeypatch):
        for module in (experts, blocks.aria, blocks.dbrx, blocks.jetmoe, blocks.llama4, blocks.longcat):
            monkeypatch.setattr(module, "expert_linear", ops.expert_linear)

    @staticmethod
    def block(name: str, config: Any) -> Any:
        """A block of the library, by the name of its class, with random weights."""
        package = type(config).__module__.rpartition(".")[0]
        modeling = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
        config._experts_implementation_internal = "eager"
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            made: nn.Module = getattr(modeling, name)(config)
            for p in made.parameters():
                p.data.normal_(0, 0.3)
        return made.eval().requires_grad_(False)

    @staticmethod
    def chosen(experts: int, tokens: int = 11) -> tuple[torch.Tensor, ...]:
        """Rows, the experts that they choose, different ones each, and their weights."""
        g = torch.Generator().manual_seed(1)
        index = torch.stack([torch.randperm(experts, generator=g)[:TOP] for _ in range(tokens)])
        return torch.randn(tokens, HIDDEN, generator=g), index, torch.rand(tokens, TOP, generator=g)

    @pytest.mark.parametrize(
        ("name", "config", "null"),
        [
            ("MixtralExperts", "MixtralConfig", 1),
            ("GptOssExperts", "GptOssConfig", 0),
            ("NemotronHExperts", "NemotronHConfig", 0),
            ("MuseSparkExperts", "MuseSparkTextConfig", 1),
        ],
        ids=["null experts", "biases, transposed and interleaved", "no gate", "a norm after"],
    )
    def test_experts_on_the_interface(self, name: str, config: str, null: int):
        if not hasattr(transformers, config):
            pytest.skip(f"no {config} in transformers {transformers.__version__}")
        block = self.block(name, small(config, **({"moe_hidden_size": HIDDEN} if null else {})))
        if "num_experts + 1" not in inspect.getsource(type(block)):
            null = 0  # 5.17 has no index past the last expert
        given = self.chosen(EXPERTS + null)
        torch.testing.assert_close(experts.experts(block, *given), block(*given), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("zero", [0, 2], ids=["all routed", "identities"])
    def test_longcat(self, zero: int):
        config = small("LongcatFlashConfig", expert_ffn_hidden_size=24, zero_expert_num=zero)
        block, given = self.block("LongcatFlashExperts", config), self.chosen(EXPERTS + zero)
        torch.testing.assert_close(blocks.longcat.longcat_experts(block, *given), block(*given))

    def test_llama4(self):
        block = self.block("Llama4TextMoe", small("Llama4TextConfig", intermediate_size=24))
        x = self.chosen(EXPERTS)[0][None]
        for ours, theirs in zip(blocks.llama4.llama4_moe(block, x), block(x), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)

    def test_aria_on_the_interface_or_as_before(self):
        block = self.block("AriaTextMoELayer", small("AriaTextConfig", moe_num_experts=EXPERTS, moe_topk=TOP))
        x = self.chosen(EXPERTS)[0][None]
        expected = block(x)
        with experts.irloom_experts(block), replaced_blocks(block):
            torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)

    def test_a_replacement_holds_for_the_modules_that_it_asks_for(self, monkeypatch):
        new = Replacement("Linear", "forward", lambda self, x: x, where=lambda m: m.bias is None)
        monkeypatch.setitem(REPLACEMENTS, ("Linear", "forward"), new)
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
        with replaced_blocks(model):
            assert ["forward" in vars(part) for part in model] == [False, True]

    def test_replacements_last_as_long_as_a_capture(self):
        block = self.block("Llama4TextMoe", small("Llama4TextConfig", intermediate_size=24))
        with replaced_blocks(block):
            assert block.forward.__func__ is blocks.llama4.llama4_moe
        assert "forward" not in vars(block)

    def test_a_block_has_one_replacement(self):
        with pytest.raises(TraceError, match=r"`Llama4TextMoe\.forward` is replaced twice: in .*llama4\.py"):
            replaces("Llama4TextMoe")(lambda self, x: x)
        assert REPLACEMENTS["Llama4TextMoe", "forward"].by is blocks.llama4.llama4_moe


FAMILIES: dict[str, Callable[[], Any]] = {
    "softmax of the chosen": lambda: small("MixtralConfig"),
    "shared experts behind a gate": lambda: small("Qwen2MoeConfig", shared_expert_intermediate_size=40),
    "groups, sigmoid, a bias that corrects the choice": lambda: small(
        "Glm4MoeConfig", n_group=3, topk_group=2, first_k_dense_replace=1, routed_scaling_factor=1.5
    ),
    "biases and clamps": lambda: small("GptOssConfig", num_key_value_heads=2, sliding_window=8),
    "a loop over experts": lambda: transformers.DbrxConfig(
        vocab_size=96, d_model=HIDDEN, n_heads=4, n_layers=2, max_seq_len=256,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": EXPERTS, "moe_top_k": TOP},
    ),
    "experts around attention": lambda: small(
        "JetMoeConfig", num_attention_heads=6, kv_channels=8, activation_function="silu"
    ),
}  # fmt: skip
LENGTHS = (5, 26, 1, 9)


class Family:
    """A tiny model, its program, and the library's logits of sequences that were run one by one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = trace_config(FAMILIES[name](), TraceOptions(dtype=ELEMS["f32"], check=False))
        self.model = randomized(FAMILIES[name]())
        g = torch.Generator().manual_seed(7)
        for path, buffer in self.model.named_buffers():
            if path.endswith("correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=g))
        self.parts = [torch.randint(3, 96, (n,), generator=g) for n in LENGTHS]
        with torch.inference_mode():
            self.logits = torch.cat([library_logits(self.model, part) for part in self.parts])

    def run(self, module: Module) -> torch.Tensor:
        """Logits of all sequences in one packed batch."""
        interpreter = Interpreter(module, LiveCheckpoint(self.model))
        (logits,) = interpreter(torch.cat(self.parts).int(), Seqs.of(list(LENGTHS)))
        return logits


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield Family(request.param)
    patch.undo()


def test_a_packed_batch_is_each_sequence_alone(family):
    torch.testing.assert_close(family.run(family.module), family.logits, atol=1e-4, rtol=0)


def test_raising_and_outlining_keep_what_it_means(family):
    module, _ = run_pipeline(family.module, "canonicalize, raise, fuse-norm, fuse-mlp, fuse-qkv, outline")
    torch.testing.assert_close(family.run(module), family.logits, atol=1e-4, rtol=0)
    assert len(module.funcs) > 1, "layers are functions"


def bound(node: Node) -> WeightExpr | None:
    """What the weight of a product with experts is bound to."""
    weight = node.args[2]
    assert isinstance(weight, Param)
    return weight.weight


def test_experts_are_two_products_bound_to_the_librarys_names(family):
    """Nothing gathers weights; what is stored another way round is a weight expression after raise."""
    module, _ = run_pipeline(family.module, "canonicalize, raise")
    nodes = [n for n in module.main.nodes if n.op.name == "expert_linear"]
    per_layer = {"a loop over experts": 3, "experts around attention": 4}.get(family.name, 2)
    dense = family.name.startswith("groups")
    assert len(nodes) == per_layer * (2 - dense)
    weights = {bound(n) for n in nodes}
    assert len(weights) == len(nodes)
    if family.name == "biases and clamps":
        assert all(isinstance(w, Transpose) and isinstance(w.x, Tensor) for w in weights)
        assert all(len(n.args) == 4 for n in nodes)


def test_a_model_of_identities_reads_only_the_routed_experts():
    """Zero experts have rows in LongCat's first weight that no product reads."""
    module = parse(
        "def main(x: f32[T, 8], i: i32[T, 2], w: f32[6, 4, 8] = weight('gate_up_proj')):\n"
        "    routed = slice(w, dim=0, start=0, stop=4)\n"
        "    y = expert_linear(x, i, routed)\n"
        "    return y\n"
    )
    raised, _ = run_pipeline(module, "canonicalize, raise")
    (node,) = raised.main.nodes
    assert bound(node) == Slice(Tensor("gate_up_proj"), 0, 0, 4)
