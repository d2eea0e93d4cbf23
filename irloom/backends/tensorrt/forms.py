"""The values of weights, by the names that networks have for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from irloom.ir.elem import Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Module, Param
from irloom.ir.weight_expr import Const

from .program import Source

if TYPE_CHECKING:
    import torch

    from irloom.ir.checkpoint import Checkpoint
    from irloom.ir.quantized import QuantizedTensor

    Form = Callable[[torch.Tensor | QuantizedTensor], torch.Tensor]

FORMS: dict[str, Form] = {}


def form(name: str) -> Callable[[Form], Form]:
    """Register what a weight's form is of the value that its expression gives (``Source.form``)."""

    def wrap(fn: Form) -> Form:
        if name in FORMS:
            raise IRError(f"tensorrt: two forms {name} of a weight")
        FORMS[name] = fn
        return fn

    return wrap


def value_of(source: Source, checkpoint: Checkpoint, m: Module) -> torch.Tensor:
    """The value of a network's weight, read from the checkpoint."""
    from irloom.ir.quantized import QuantizedTensor
    from irloom.ir.weights import materialize

    p = source.param
    assert p.weight is not None
    x = materialize(p.weight, checkpoint, None, m.consts)
    if isinstance(p.type.elem, Elem):
        x = (x.dequantize() if isinstance(x, QuantizedTensor) else x).to(p.type.elem.torch)
    if source.form:
        return FORMS[source.form](x)
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


INLINE = 4096
"""Entries of a constant of the module that is part of a network; larger ones are weights."""


def inline(p: Param, m: Module) -> torch.Tensor | None:
    """The value of a parameter that is a small constant of the module; None for any other."""
    if not isinstance(p.weight, Const) or m.consts[p.weight.name].numel() > INLINE:
        return None
    return m.consts[p.weight.name].to(p.type.plain.torch)
