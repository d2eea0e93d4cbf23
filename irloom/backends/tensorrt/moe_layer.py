"""Gated experts as TensorRT's own layer for them, and their weights as it takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irloom.ir.graph import Param

from .context import Context
from .forms import form
from .layers.moe import MoE
from .lower_router import routed
from .network import Tensor

if TYPE_CHECKING:
    import torch

    from irloom.ir.quantized import QuantizedTensor


def fits(c: Context, x: Tensor) -> bool:
    """Whether the layer says it: ``silu``, all of one short float, biases of both products or of none, and
    experts that a router chose, for an index of no expert means nothing to it.
    """
    names = ("gate_up", "down", "gate_up_bias", "down_bias")
    weights = [a for a in map(c.arg, names) if a is not None]
    own = all(isinstance(a, Param) and a.type.elem == x.elem for a in weights)
    return (
        own
        and routed(c)
        and len(weights) in (2, 4)
        and c.attr("act") == "silu"
        and x.elem.name in ("f16", "bf16")
    )


def layer_of(c: Context, x: Tensor, index: Tensor) -> Tensor:
    """The layer on one batch of T tokens. It takes matrices transposed, and gate and up apart."""
    experts, twice, hidden = (d for d in c.type("gate_up").dims if isinstance(d, int))
    inner, biases = twice // 2, None
    gate, up = (_turned(c, "gate_up", half, (experts, hidden, inner)) for half in ("gate", "up"))
    down = _turned(c, "down", "turned", (experts, inner, hidden))
    if c.has("gate_up_bias"):
        first, second = (
            _turned(c, "gate_up_bias", half, (experts, inner)) for half in ("gate_bias", "up_bias")
        )
        biases = first, second, c["down_bias"]
    tokens, chosen, scores = (c.lift(t, 3) for t in (x, index, c.cast(c["weights"], x.elem)))
    made = c.add(MoE(tokens, chosen, scores, gate, up, down, biases))
    return c.cast(c.reshape(made, x.dims), c.result.plain)


def _turned(c: Context, name: str, how: str, dims: tuple[int, ...]) -> Tensor:
    p = c.arg(name)
    assert isinstance(p, Param)
    return c.weight(p, how, dims=dims)


def plain(x: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    """A weight that is not quantized."""
    import torch

    assert isinstance(x, torch.Tensor)
    return x


form("gate")(lambda x: plain(x).chunk(2, 1)[0].mT.contiguous())
form("up")(lambda x: plain(x).chunk(2, 1)[1].mT.contiguous())
form("gate_bias")(lambda x: plain(x).chunk(2, 1)[0].contiguous())
form("up_bias")(lambda x: plain(x).chunk(2, 1)[1].contiguous())
form("turned")(lambda x: plain(x).mT.contiguous())
