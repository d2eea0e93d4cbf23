"""Mixture of experts as one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .quantize import F8, to_quantized
from .rules import OPERATORS, allow, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class MoE(Layer):
    """The experts that each token chose, gated MLPs, weighed by its scores and added up.

    ``x`` is [B, N, hidden], ``experts`` (i32) and ``scores`` are [B, N, k]. ``gate`` and ``up`` are [experts,
    hidden, inner], ``down`` is [experts, inner, hidden]: an expert is ``(act(x @ gate) * (x @ up)) @ down``,
    with ``biases`` (of gate, up and down) if given. ``act`` is ``silu`` or ``none``. With ``inner_scale``,
    what enters ``down`` passes through f8e4m3.
    """

    source = f"{OPERATORS}/MoE.html"

    x: Tensor
    experts: Tensor
    scores: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    biases: tuple[Tensor, Tensor, Tensor] | None = None
    act: str = "silu"
    inner_scale: Tensor | None = None

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, ("f16", "bf16", "f32"))
        allow(self, "experts", self.experts, ("i32",))
        same_elem(self, self.x, self.scores, self.gate, self.up, self.down, *(self.biases or ()))
        if self.act not in ("silu", "none"):
            raise self.refuse(f"no activation {self.act!r}")
        if len(self.x.dims) != 3 or self.experts.dims != self.scores.dims:
            raise self.refuse(f"{self.x}, {self.experts}, {self.scores}: [B, N, hidden] and twice [B, N, k]")
        if self.experts.dims[:2] != self.x.dims[:2] or len(self.experts.dims) != 3:
            raise self.refuse(f"{self.experts} does not choose for the tokens of {self.x}")
        if len(self.gate.dims) != 3 or self.gate.dims[1] != self.x.dims[2]:
            raise self.refuse(f"{self.gate} is not [experts, {self.x.dims[2]}, inner]")
        count, hidden, inner = self.gate.dims
        if self.up.dims != self.gate.dims or self.down.dims != (count, inner, hidden):
            raise self.refuse(f"{self.up} and {self.down} do not fit {self.gate}")
        wanted = ((count, inner), (count, inner), (count, hidden))
        if self.biases is not None and tuple(t.dims for t in self.biases) != wanted:
            raise self.refuse(f"{' and '.join(map(str, self.biases))} are no biases of {self.gate}")
        if self.inner_scale is not None and self.inner_scale.dims not in ((), (count,)):
            raise self.refuse(f"{self.inner_scale} is no scale, nor one an expert")
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        x = value(self.x).float().flatten(0, 1)
        chosen, scores = value(self.experts).flatten(0, 1), value(self.scores).float().flatten(0, 1)
        out = torch.zeros_like(x)
        for e in range(int(str(self.gate.dims[0]))):
            share = torch.where(chosen == e, scores, 0.0).sum(-1, keepdim=True)
            out += torch.where(share == 0.0, 0.0, self._expert(x, e, value) * share)
        return (out.reshape(value(self.x).shape).to(self.x.elem.torch),)

    def _expert(self, x: torch.Tensor, e: int, value: Value) -> torch.Tensor:
        biases = [value(t)[e].float() for t in self.biases] if self.biases else [0.0, 0.0, 0.0]
        gate = x @ value(self.gate)[e].float() + biases[0]
        inner = (gate * gate.sigmoid() if self.act == "silu" else gate) * (
            x @ value(self.up)[e].float() + biases[1]
        )
        if self.inner_scale is not None:
            scale = value(self.inner_scale).float()
            scale = scale[e] if scale.dim() else scale
            inner = to_quantized(inner / scale, F8).float() * scale
        return inner @ value(self.down)[e].float() + biases[2]

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_moe(to[self.x], to[self.experts], to[self.scores])
        act = getattr(to.trt.MoEActType, self.act.upper())
        layer.set_gated_weights(to[self.gate], to[self.up], to[self.down], act)
        if self.biases is not None:
            layer.set_gated_biases(*(to[t] for t in self.biases))
        if self.inner_scale is not None:
            layer.set_quantization_static(to[self.inner_scale], to.dtype(F8))
        return [layer.get_output(0)]
