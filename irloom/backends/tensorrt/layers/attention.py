"""Attention: two products and the normalization between them, as one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS, Elem

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .quantize import to_quantized
from .rules import FLOATS, OPERATORS, allow, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter

CAUSAL = ("none", "upper_left", "lower_right")


@dataclass(frozen=True)
class Attention(Layer):
    """``softmax(q @ k.T + mask) @ v``; ``q`` comes scaled.

    ``q`` is [B, heads, N, head dim], or [T, heads, head dim] where ``query_starts`` [B + 1] says at which row
    a sequence begins; the result has its dims. ``k`` and ``v``, of equal dims, are [B, KV heads, L, head
    dim], of which the first ``lengths`` [B] count if given, or [rows, KV heads, head dim] where
    ``key_starts`` [B + 1] says where a sequence begins. A group of ``heads / KV heads`` queries shares a key.

    Which keys a query sees is said by ``mask`` or by ``causal``, not by both. ``mask`` broadcasts to [B,
    heads, N, L]: bool where it may see, or a number that is added. With ``causal="lower_right"``, the last
    of the N queries of a sequence sees its last key, so with rows of padding behind the real ones
    ``lengths`` counts the padding too. What a row that sees no key leaves is undefined: here, NaN.

    Where no kernel fits, a ``decomposable`` one becomes several. ``probability_scale`` (a scalar) has the
    softmax's result pass through ``probability_elem``.
    """

    source = f"{OPERATORS}/Attention.html"

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    lengths: Tensor | None = None
    query_starts: Tensor | None = None
    key_starts: Tensor | None = None
    causal: str = "none"
    normalization: str = "softmax"
    decomposable: bool = False
    probability_scale: Tensor | None = None
    probability_elem: Elem | None = None

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "q", self.q, FLOATS)
        same_elem(self, self.q, self.k, self.v)
        if self.k.dims != self.v.dims:
            raise self.refuse(f"{self.k} and {self.v} have different dims")
        batch, heads, tokens, features = self._query()
        kv_batch, kv_heads, keys, kv_features = self._keys()
        if features != kv_features:
            raise self.refuse(f"{self.q} and {self.k} have heads of {features} and {kv_features} features")
        if not isinstance(heads, int) or not isinstance(kv_heads, int) or heads % kv_heads:
            raise self.refuse(f"{kv_heads} KV heads do not divide {heads} query heads")
        if batch != kv_batch:
            raise self.refuse(f"{batch} sequences of queries, {kv_batch} of keys")
        self._check_mask((batch, heads, tokens, keys))
        self._check_probability()
        return ((self.q.elem, self.q.dims),)

    def _query(self) -> tuple[Dim, Dim, Dim, Dim]:
        return self._batched(self.q, self.query_starts, None)

    def _keys(self) -> tuple[Dim, Dim, Dim, Dim]:
        return self._batched(self.k, self.key_starts, self.lengths)

    def _batched(self, t: Tensor, starts: Tensor | None, lengths: Tensor | None) -> tuple[Dim, Dim, Dim, Dim]:
        """Batch, heads, tokens and features of a padded or packed tensor."""
        if len(t.dims) != (4 if starts is None else 3):
            raise self.refuse(
                f"{t} is neither [B, heads, N, head dim] nor, with starts, [T, heads, head dim]"
            )
        for given in (starts, lengths):
            if given is not None and (given.elem != ELEMS["i32"] or len(given.dims) != 1):
                raise self.refuse(f"{given} is not a row of i32")
        if starts is not None and lengths is not None:
            raise self.refuse("packed keys are counted by their starts, not by lengths")
        if starts is not None:
            rows, heads, features = t.dims
            return starts.dims[0] - 1, heads, rows, features
        batch, heads, tokens, features = t.dims
        if lengths is not None and lengths.dims != (batch,):
            raise self.refuse(f"{lengths} is not [{batch}]")
        return batch, heads, tokens, features

    def _check_mask(self, dims: tuple[Dim, Dim, Dim, Dim]) -> None:
        if self.causal not in CAUSAL or self.normalization not in ("softmax", "none"):
            raise self.refuse(f"no causal {self.causal!r} or no normalization {self.normalization!r}")
        if self.mask is None:
            return
        if self.causal != "none":
            raise self.refuse("a mask and `causal` exclude each other")
        if self.query_starts is not None or self.key_starts is not None:
            raise self.refuse("a mask needs padded queries and keys")
        allow(self, "mask", self.mask, (self.q.elem.name, "bool"))
        fits = len(self.mask.dims) == 4 and self.mask.dims[2:] == dims[2:]
        if not fits or any(m not in (1, d) for m, d in zip(self.mask.dims, dims, strict=True)):
            raise self.refuse(f"{self.mask} is not [{', '.join(map(str, dims))}], the first two or 1")

    def _check_probability(self) -> None:
        if (self.probability_scale is None) != (self.probability_elem is None):
            raise self.refuse("a scale and an element of the probabilities come together")
        if self.probability_scale is not None and self.probability_elem is not None:
            same_elem(self, self.q, self.probability_scale)
            if self.probability_elem.name not in ("f8e4m3", "i8") or self.probability_scale.dims:
                raise self.refuse(f"{self.probability_scale} is no scalar, or not for f8e4m3 or i8")

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        q, k, v = value(self.q), value(self.k), value(self.v)
        if self.query_starts is None and self.key_starts is None:
            used = value(self.lengths) if self.lengths is not None else None
            return (self._batch(q, k, v, used, value),)
        bounds = [value(t).tolist() if t is not None else None for t in (self.query_starts, self.key_starts)]
        out = torch.empty_like(q)
        for b in range(len(bounds[0] or bounds[1] or ()) - 1):
            rows, qs = _one(q, bounds[0], b)
            _, ks = _one(k, bounds[1], b)
            _, vs = _one(v, bounds[1], b)
            used = value(self.lengths)[b : b + 1] if self.lengths is not None else None
            made = self._batch(qs, ks, vs, used, value)
            out[rows] = made[0].transpose(0, 1) if self.query_starts is not None else made
        return (out,)

    def _batch(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, used: torch.Tensor | None, value: Value
    ) -> torch.Tensor:
        """Padded attention, in f32."""
        import torch

        group, (n, keys) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
        scores = q.float() @ k.float().repeat_interleave(group, 1).mT
        row, key = torch.arange(n, device=q.device)[:, None], torch.arange(keys, device=q.device)
        end = torch.full((q.shape[0],), keys, device=q.device) if used is None else used.long()
        end = end[:, None, None, None]
        seen = key < end
        if self.causal != "none":
            seen = seen & (key <= row + (end - n if self.causal == "lower_right" else 0))
        if self.mask is not None and self.mask.elem.name == "bool":
            seen = seen & value(self.mask)
        elif self.mask is not None:
            scores = scores + value(self.mask).float()
        hidden = float("-inf") if self.normalization == "softmax" else 0.0
        scores = scores.masked_fill(~seen, hidden)
        weights = scores.softmax(-1) if self.normalization == "softmax" else scores
        if self.probability_scale is not None and self.probability_elem is not None:
            scale = value(self.probability_scale).float()
            weights = to_quantized(weights / scale, self.probability_elem).float() * scale
        values = v.float().nan_to_num(0.0).repeat_interleave(group, 1)
        return (weights @ values).to(q.dtype)

    def emit(self, to: Emitter) -> Sequence[Any]:
        norm = getattr(to.trt.AttentionNormalizationOp, self.normalization.upper())
        causal = getattr(to.trt.CausalMaskKind, self.causal.upper())
        made = to.network.add_attention_v2(to[self.q], to[self.k], to[self.v], norm, causal)
        made.decomposable = self.decomposable
        if self.query_starts is not None:
            made.query_form = to.trt.AttentionIOForm.PACKED_NHD
            made.query_lengths = to[self.query_starts]
        if self.key_starts is not None:
            made.key_value_form = to.trt.AttentionIOForm.PACKED_NHD
            made.key_value_lengths = to[self.key_starts]
        if self.lengths is not None:
            made.key_value_lengths = to[self.lengths]
        if self.mask is not None:
            made.mask = to[self.mask]
        if self.probability_scale is not None and self.probability_elem is not None:
            made.normalization_quantize_scale = to[self.probability_scale]
            made.normalization_quantize_to_type = to.dtype(self.probability_elem)
        return [made.get_output(0)]


def _one(x: torch.Tensor, starts: list[int] | None, b: int) -> tuple[slice, torch.Tensor]:
    """Sequence ``b`` of a packed or padded tensor: where it lies, and it as a batch of one."""
    if starts is None:
        return slice(b, b + 1), x[b : b + 1]
    rows = slice(starts[b], starts[b + 1])
    return rows, x[rows].transpose(0, 1)[None]
