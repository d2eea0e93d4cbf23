"""The ops that stand for attention, its mask, its state and experts while a library model is being captured.

They live in torch's dispatcher only so that ``torch.export`` keeps them whole: each has a shape rule and no
kernel, because a captured graph is imported, never run. The importer turns them into IR ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

# q [B, H, T, D], k [B, KV, S, D], v [B, KV, S, E] -> [B, T, H, E]; zero softcap, window or chunk means none.
torch.library.define(
    "irloom::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? sinks, float scale, float softcap, SymInt window,"
    " bool causal, int layer, int chunk=0, float[]? slopes=None, Tensor? index=None,"
    " int block=1, Tensor? bias=None) -> Tensor",
)
# What the library would spell as a dense additive mask [1, 1, T, S]; kind is causal, sliding or chunked.
torch.library.define(
    "irloom::attention_mask",
    "(SymInt queries, SymInt keys, str kind, int size, ScalarType dtype, Device device) -> Tensor",
)
# A cache write of [B, KV, T, D] and the read that follows it, [B, KV, past + T, D], of both K and V.
torch.library.define("irloom::kv_store", "(Tensor k, Tensor v, int layer, SymInt past) -> (Tensor, Tensor)")
# x [T, H] or [T, K, H], index [T, K], weight [E, N, H], bias [E, N] -> [T, K, N]: each token's K experts.
torch.library.define(
    "irloom::expert_linear", "(Tensor x, Tensor index, Tensor weight, Tensor? bias) -> Tensor"
)


@torch.library.register_fake("irloom::attention")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    layer: int,
    chunk: int = 0,
    slopes: list[float] | None = None,
    index: Tensor | None = None,
    block: int = 1,
    bias: Tensor | None = None,
) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.register_fake("irloom::attention_mask")
def _attention_mask(
    queries: int, keys: int, kind: str, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(1, 1, queries, keys, dtype=dtype, device=device)


@torch.library.register_fake("irloom::kv_store")
def _kv_store(k: Tensor, v: Tensor, layer: int, past: int) -> tuple[Tensor, Tensor]:
    def read(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-2], x.shape[-2] + past, x.shape[-1])

    return read(k), read(v)


expert_linear = torch.ops.irloom.expert_linear


@torch.library.register_fake("irloom::expert_linear")
def _expert_linear(x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(index.shape[0], index.shape[1], weight.shape[1])


# The edges of a layer's run, and the marker of one that did not run; see ``repeat.py``. The tensors that go
# in come out, and those of ``layer_again`` are like what the layer gave when it ran.
torch.library.define("irloom::layer_enter", "(Tensor[] x, int call) -> Tensor[]")
torch.library.define("irloom::layer_leave", "(Tensor[] x, int call) -> Tensor[]")
torch.library.define("irloom::layer_again", "(Tensor[] x, Tensor[] like, int call) -> Tensor[]")


@torch.library.register_fake("irloom::layer_enter")
@torch.library.register_fake("irloom::layer_leave")
def _same(x: list[Tensor], call: int) -> list[Tensor]:
    return [torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device) for t in x]


@torch.library.register_fake("irloom::layer_again")
def _again(x: list[Tensor], like: list[Tensor], call: int) -> list[Tensor]:
    return _same(like, call)
