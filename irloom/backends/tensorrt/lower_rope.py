"""Lowering of rotary embedding: TensorRT's own layer, on packed rows.

Cosines and sines are computed in the network from the step's positions, once for all layers that share
frequencies: no table limits how far positions go, and frequencies may come from the checkpoint.
"""

from __future__ import annotations

from irloom.ir.elem import ELEMS
from irloom.ir.ops.attention import default_frequencies

from .context import Context, lowers
from .layers.fill import Constant
from .layers.rotary import RotaryEmbedding
from .network import Tensor

F32 = ELEMS["f32"]


@lowers("rope")
def rope(c: Context) -> Tensor:
    return turned(c, c["x"])


def turned(c: Context, x: Tensor) -> Tensor:
    """Heads [T, heads, head dim], turned as the attributes of ``rope`` say: a batch of T single tokens."""
    rows, heads, dim = x.dims
    rotary = c.attr("rotary") or dim
    assert isinstance(rotary, int)
    cos, sin = angles(c, rotary, x)
    part = 0 if rotary == dim else rotary
    alone = c.reshape(x, (rows, heads, 1, dim))
    made = c.add(RotaryEmbedding(alone, cos, sin, interleaved=c.attr("interleaved"), dim=part))
    return c.reshape(made, x.dims)


def angles(c: Context, rotary: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 1, rotary / 2] of every pair's angle, in the element of ``like``."""
    positions, given, scale = c["positions"], c.get("inv_freq"), c.attr("scale")
    key = ("angles", positions, given or (c.attr("theta"), rotary), scale, like.elem)
    return c.once(key, lambda: _angles(c, positions, given or _frequencies(c, rotary), scale, like))


def _angles(
    c: Context, positions: Tensor, frequencies: Tensor, scale: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    rows, pairs = positions.dims[0], frequencies.dims[-1]
    at = c.reshape(c.cast(positions, F32), (rows, 1, 1))
    angle = c.binary("prod", at, c.reshape(c.cast(frequencies, F32), (1, 1, pairs)))
    return tuple(_scaled(c, c.unary(op, angle), scale, like) for op in ("cos", "sin"))  # type: ignore[return-value]


def _scaled(c: Context, x: Tensor, scale: float, like: Tensor) -> Tensor:
    return c.cast(x if scale == 1.0 else c.binary("prod", x, scale), like.elem)


def _frequencies(c: Context, rotary: int) -> Tensor:
    values = default_frequencies(c.attr("theta"), rotary).tolist()
    return c.add(Constant(F32, (len(values),), tuple(values)))
