"""Point a library model's attention and mask interfaces at irloom's ops, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from irloom.frontends.hf import ops as registered
from irloom.frontends.hf.masks import mask_op
from irloom.ir.errors import TraceError

assert registered, "imported for the ops that it registers with torch"

IMPLEMENTATION = "irloom"
IGNORED = {
    "dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position",
    "position_embeddings", "past_key_values", "return_dict", "logits_to_keep", "deterministic",
    "output_router_logits", "cache_params",
}  # fmt: skip
"""Keyword arguments that reach an attention function and do not change what it computes without padding."""


@contextlib.contextmanager
def irloom_attention(model: nn.Module) -> Iterator[None]:
    """Within, ``model`` computes attention and masks with irloom's ops.

    The internal field of each config is written, because the public setter refuses by a pattern on the
    source text of the model, and refuses some that work.
    """
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask_op)
    with implementation(model, "_attn_implementation_internal"):
        yield


@contextlib.contextmanager
def implementation(model: nn.Module, field: str) -> Iterator[None]:
    """Within, ``field`` of every config that a module of ``model`` reads names irloom."""
    configs = {id(c): c for m in model.modules() for c in _configs(getattr(m, "config", None))}.values()
    before = [getattr(config, field) for config in configs]
    try:
        for config in configs:
            setattr(config, field, IMPLEMENTATION)
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            setattr(config, field, name)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    block_indices: Tensor | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The library's attention interface: q [B, H, T, D], k and v [B, KV, S, D] to [B, T, H, D].

    A ``position_bias`` [B, H, T, R] is by distance, where the library's has an entry for each key.
    """
    unknown = sorted(name for name, value in rest.items() if value is not None and name not in IGNORED)
    if unknown:
        raise TraceError(
            f"attention takes `{unknown[0]}`, which irloom does not know",
            hint="one that does not change the result belongs in IGNORED in frontends/hf/interfaces.py",
        )
    if position_bias is not None and not isinstance(position_bias.shape[-1], int):
        raise TraceError(
            "attention takes a bias for each token and key, which only exists as a whole",
            hint="replace the block that makes it by one that makes a bias for each token and distance",
        )
    layer = getattr(module, "layer_idx", None)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    out = torch.ops.irloom.attention(
        query,
        key,
        value,
        attention_mask,
        sinks if sinks is not None else s_aux,
        float(scale),
        float(softcap or 0.0),
        int(sliding_window or 0),
        bool(causal),
        -1 if layer is None else int(layer),
        index=indices if block_indices is None else block_indices,
        block=1 if block_indices is None else cast(Any, module).indexer.block_size,
        bias=position_bias,
    )
    return out, None


def _configs(config: Any) -> Iterator[Any]:
    """A config and its sub-configs that carry an attention implementation."""
    if config is None or not hasattr(config, "_attn_implementation_internal"):
        return
    yield config
    for name in getattr(config, "sub_configs", None) or {}:
        yield from _configs(getattr(config, name, None))
