"""What a checkpoint's config says of a model beside its tensors, checked, with a type for each fact.

Sizes that tensors have are not here: tensors are read first. Megatron's settings that change a result and
that irloom does not compute are listed below, and a checkpoint that sets one is refused; one that is in no
list, of a Megatron newer than these, is not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.frontends.nemo.fields import Fields
from irloom.ir.errors import CheckpointError

_PLAIN: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": (False,),
    "transformer_block_type": ("pre_ln",),
    "headscale": (False,),
    "normalize_attention_scores": (True,),
    "rotary_interleaved": (False,),
    "softmax_type": ("vanilla",),
    "window_attn_skip_freq": (),
    "no_rope_freq": (),
    "qk_l2_norm": (False,),
    "activation_func_clamp_value": (),
    "glu_linear_offset": (0, 0.0),
    "heterogeneous_block_specs": (False,),
    "experimental_attention_variant": (),
    "attention_output_gate": (False,),
    "moe_apply_probs_on_input": (False,),
    "use_mup": (False,),
    "mrope_section": (),
    "parallel_attention": (False,),
    "quantization_layer_specs": (),
    "num_residual_streams": (),
    "relative_attention_num_buckets": (32,),
    "fp8_param": (False,),
}
"""Options whose other values change what a model computes, and the values that do not. None never does."""

_POSITIONS = ("rope", "learned_absolute", "none", "yarn")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: its base, the share of a head that turns, and how it is stretched to long contexts.

    ``linear`` divides positions; ``llama3`` is (factor, low, high, original length).
    """

    base: float
    share: float
    linear: float = 1.0
    llama3: tuple[float, float, float, int] | None = None


@dataclass(frozen=True)
class Yarn:
    """YaRN scaling of an MLA model's rotary embedding."""

    factor: float
    original: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True)
class Routing:
    """How a token chooses ``topk`` experts.

    ``sigmoid`` scores are divided by their sum; softmax is taken before the choice (``before``) or over the
    chosen. Experts in ``groups`` are chosen from the ``kept`` best groups; weights are times ``scale``.
    """

    topk: int
    sigmoid: bool
    before: bool
    scale: float
    groups: int
    kept: int


@dataclass(frozen=True)
class Latent:
    """Head dims of multi-head latent attention: without and with rotation, and of values."""

    plain: int
    rotated: int
    value: int
    yarn: Yarn | None


@dataclass(frozen=True)
class Settings:
    """A model's config, see ``_PLAIN`` for what it may not say.

    ``scaled_embedding``: where it makes a Gemma, the embedding is times the root of its width. No config says
    so, and Megatron-LM has no such option.
    """

    family: str
    heads: int
    groups: int
    head_dim: int | None
    rms: bool
    zero_centered: bool
    scaled_embedding: bool
    epsilon: float
    activation: str
    position: str
    rope: Rope
    positions: int
    window: int | None
    routing: Routing | None
    latent: Latent | None
    pattern: str
    mamba_groups: int
    vocab: int | None
    softcap: float | None
    logit_softcap: float | None
    attention_scale: float | None


def read_settings(fields: Fields, path: Path) -> Settings:
    """Check and name what a config says; ``CheckpointError`` for what is missing or not understood."""
    said = _Said(fields, path)
    said.refuse_unusual()
    heads = said.count("num_attention_heads")
    position = said.choice("position_embedding_type", _POSITIONS, "learned_absolute")
    if position == "yarn":
        raise CheckpointError(
            f"{path}: yarn is read of MLA models only", hint="use the model's HF checkpoint"
        )
    routed = said.whole("num_moe_experts", 0)
    latent = bool(fields.get("multi_latent_attention")) or bool(fields.get("kv_lora_rank"))
    return Settings(
        family=str(fields.get("family") or ""),
        heads=heads,
        groups=said.whole("num_query_groups", 0) or heads,
        head_dim=said.whole("kv_channels", 0) or None,
        rms=said.choice("normalization", ("LayerNorm", "RMSNorm"), "LayerNorm") == "RMSNorm",
        zero_centered=bool(fields.get("layernorm_zero_centered_gamma")),
        scaled_embedding=bool(fields.get("scaled_embedding")),
        epsilon=said.number("layernorm_epsilon", 1e-5),
        activation=str(fields["activation"]),
        position="rope" if latent else position,
        rope=_rope(said),
        positions=said.whole("seq_length", 0) or said.whole("max_position_embeddings", 0) or 2048,
        window=_window(said),
        routing=_routing(said) if routed else None,
        latent=_latent(said) if latent else None,
        pattern=_pattern(fields),
        mamba_groups=said.whole("mamba_num_groups", 8),
        vocab=said.whole("vocab_size", 0) or None,
        softcap=said.number("attn_logit_softcapping", 0.0) or None,
        logit_softcap=said.number("final_logit_softcapping", 0.0) or None,
        attention_scale=_attention_scale(said),
    )


class _Said:
    """Fields of a config, read with their types."""

    def __init__(self, fields: Fields, path: Path) -> None:
        self.fields, self.path = fields, path

    def number(self, name: str, default: float) -> float:
        value = self.fields.get(name)
        if value is None:
            return default
        if isinstance(value, str):  # YAML 1.1 takes 1e-05 for text
            try:
                value = float(value)
            except ValueError:
                raise self._wrong(name, value) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, value)
        return float(value)

    def whole(self, name: str, default: int) -> int:
        value = self.number(name, default)
        if value != int(value) or value < 0:
            raise self._wrong(name, value)
        return int(value)

    def count(self, name: str) -> int:
        value = self.whole(name, 0)
        if not value:
            raise CheckpointError(
                f"{self.path}: its config does not say `{name}`",
                hint="it may be a default of the class that made it; add it to the config",
            )
        return value

    def choice(self, name: str, values: tuple[str, ...], default: str) -> str:
        value = self.fields.get(name) or default
        if value not in values:
            raise self._wrong(name, value, f"irloom reads {', '.join(values)}")
        return str(value)

    def refuse_unusual(self) -> None:
        for name, usual in _PLAIN.items():
            value = self.fields.get(name)
            if value is not None and value not in usual:
                raise self._wrong(name, value, "irloom does not read models with this option")

    def _wrong(self, name: str, value: Any, hint: str = "") -> CheckpointError:
        shown = str(value)[:60] if isinstance(value, str | int | float | bool) else type(value).__name__
        return CheckpointError(
            f"{self.path}: its config says `{name}` is {shown}",
            hint=hint or "the config is damaged, or of a kind that irloom does not read",
        )


def _rope(said: _Said) -> Rope:
    base = said.number("rotary_base", 10000.0)
    share = said.number("rotary_percent", 1.0)
    linear = said.number("seq_len_interpolation_factor", 1.0)
    if not said.fields.get("rope_scaling"):
        return Rope(base, share, linear)
    factor = said.number("rope_scaling_factor", 8.0)
    low, high = said.number("low_freq_factor", 1.0), said.number("high_freq_factor", 4.0)
    return Rope(base, share, linear, (factor, low, high, said.whole("old_context_len", 8192)))


def _window(said: _Said) -> int | None:
    """Tokens that a token sees, itself among them.

    Megatron says how many before it: (4095, 0). NeMo 2's configs of Hugging Face models say the sum.
    """
    value = said.fields.get("window_size")
    if isinstance(value, dict):  # a tuple as a call
        value = next((v for v in value.values() if isinstance(v, list)), None)
    if value is None:
        return None
    first = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(first, bool) or not isinstance(first, int) or first < -1:
        raise CheckpointError(
            f"{said.path}: its config says `window_size` is not a number of tokens",
            hint="Megatron writes how many tokens before it a token sees, and 0",
        )
    if first == -1:
        return None
    return first if said.fields.get("window_is_hf") or not isinstance(value, list | tuple) else first + 1


def _routing(said: _Said) -> Routing:
    score = said.choice("moe_router_score_function", ("softmax", "sigmoid"), "softmax")
    return Routing(
        topk=said.whole("moe_router_topk", 2),
        sigmoid=score == "sigmoid",
        before=bool(said.fields.get("moe_router_pre_softmax")),
        scale=said.number("moe_router_topk_scaling_factor", 0.0) or 1.0,
        groups=said.whole("moe_router_num_groups", 0) or 1,
        kept=said.whole("moe_router_group_topk", 0) or 1,
    )


def _latent(said: _Said) -> Latent:
    yarn = None
    if said.choice("rope_type", ("rope", "yarn"), "yarn") == "yarn":
        yarn = Yarn(
            factor=said.number("rotary_scaling_factor", 40.0),
            original=said.whole("original_max_position_embeddings", 4096),
            beta_fast=said.number("beta_fast", 32.0),
            beta_slow=said.number("beta_slow", 1.0),
            mscale=said.number("mscale", 1.0),
            mscale_all_dim=said.number("mscale_all_dim", 0.0),
        )
    elif said.number("mscale_all_dim", 0.0):
        raise CheckpointError(
            f"{said.path}: its config scales attention by `mscale_all_dim` without yarn",
            hint="irloom does not read models with this option",
        )
    return Latent(
        plain=said.whole("qk_head_dim", 128),
        rotated=said.whole("qk_pos_emb_head_dim", 64),
        value=said.whole("v_head_dim", 128),
        yarn=yarn,
    )


def _pattern(fields: Fields) -> str:
    """The kinds of a hybrid's layers, a letter each: M Mamba, * attention, - MLP, E experts."""
    said = fields.get("hybrid_layer_pattern") or fields.get("hybrid_override_pattern") or ""
    return str(said).partition("/")[0].replace("|", "")


def _attention_scale(said: _Said) -> float | None:
    """What products of queries and keys are times, where it is not one over the root of the head dim."""
    scalar = said.number("query_pre_attn_scalar", 0.0)
    return 1 / math.sqrt(scalar) if scalar else said.number("softmax_scale", 0.0) or None
