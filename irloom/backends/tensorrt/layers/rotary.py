"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, INTS, OPERATORS, allow, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class RotaryEmbedding(Layer):
    """The first ``dim`` features of each head of ``x`` [B, heads, N, head dim], turned by an angle a token.

    ``cos`` and ``sin`` are [B, N, dim / 2], or [longest, dim / 2] with ``positions`` [B, N] that index them.
    A pair is a feature and the one half of ``dim`` behind it, or two neighbours if ``interleaved``. Packed
    rows [T, heads, head dim] are the batch of T tokens [T, heads, 1, head dim].
    """

    source = f"{OPERATORS}/RotaryEmbedding.html"

    x: Tensor
    cos: Tensor
    sin: Tensor
    positions: Tensor | None = None
    interleaved: bool = False
    dim: int = 0

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, FLOATS)
        same_elem(self, self.x, self.cos, self.sin)
        if len(self.x.dims) != 4:
            raise self.refuse(f"{self.x} is not [B, heads, N, head dim]")
        batch, _, tokens, features = self.x.dims
        turned = self.dim or features
        if not isinstance(features, int) or not isinstance(turned, int) or turned % 2 or turned > features:
            raise self.refuse(f"it turns {turned} of {features} features: an even number, known now")
        if self.positions is not None:
            allow(self, "positions", self.positions, INTS)
            if self.positions.dims != (batch, tokens):
                raise self.refuse(f"{self.positions} is not [{batch}, {tokens}]")
        lead = self.cos.dims[:1] if self.positions is not None else (batch, tokens)
        if self.cos.dims != (*lead, turned // 2) or self.sin.dims != self.cos.dims:
            raise self.refuse(f"{self.cos} and {self.sin} do not end in {turned // 2} after the tokens")
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        x, cos, sin = value(self.x), value(self.cos).float(), value(self.sin).float()
        if self.positions is not None:
            at = value(self.positions).long()
            cos, sin = cos[at], sin[at]
        cos, sin = cos[:, None], sin[:, None]
        turned = self.dim or x.shape[-1]
        y, rest = x[..., :turned].float(), x[..., turned:]
        a, b = (y[..., ::2], y[..., 1::2]) if self.interleaved else y.chunk(2, -1)
        pair = a * cos - b * sin, a * sin + b * cos
        out = torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        return (torch.cat([out.to(x.dtype), rest], -1),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        given = to[self.x], to[self.cos], to[self.sin]
        layer = to.network.add_rotary_embedding(*given, self.interleaved, self.dim)
        if self.positions is not None:
            layer.set_input(3, to[self.positions])
        return [layer.get_output(0)]
