"""Launchers by the names that launches have for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

HOMES = {
    "rows": ("rms_norm", "add_rms_norm", "rms_norm_add", "layer_norm", "add_layer_norm", "l2_norm"),
    "activation": ("act_mul",),
    "elementwise": ("elementwise",),
    "moves": ("reshape", "permute", "expand", "sliced", "concat"),
    "quantize": ("quantize",),
    "embedding": ("embedding", "last_rows"),
    "rope": ("rope", "rope_append", "kv_append"),
    "attention": ("paged_attention",),
    "rope_attention": ("rope_attention",),
    "recurrent_conv": ("carried_causal_conv", "carried_token_shift"),
    "recurrent_scan": ("carried_linear_scan", "carried_selective_scan", "carried_wkv"),
    "recurrent_matrix": (
        "carried_ssd_scan", "carried_gated_delta", "carried_gated_linear_attention", "carried_mlstm",
    ),
    "router": ("route",),
    "norm_route": ("norm_route",),
    "experts": ("moe", "expert_linear", "head_linear", "weighted_sum"),
    "reduce": ("topk", "argmax", "softmax"),
    "reduced": ("reduced",),
}  # fmt: skip
"""Which module of ``kernels`` has which launchers."""


class Launchers(Mapping[str, Callable[..., None]]):
    """Every launcher; the module of one is imported when it is first asked for."""

    def __getitem__(self, name: str) -> Callable[..., None]:
        return _load(name)

    def __iter__(self):
        yield from (name for names in HOMES.values() for name in names)
        yield "product"

    def __len__(self) -> int:
        return sum(map(len, HOMES.values())) + 1


@cache
def _load(name: str) -> Callable[..., Any]:
    home = next((module for module, names in HOMES.items() if name in names), None)
    module = f"kernels.{home}" if home else "products"
    return getattr(import_module(f"irloom.backends.cuda.{module}"), name)


LAUNCHERS = Launchers()
