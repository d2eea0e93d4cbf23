"""An engine's weights: those that launches read, once for every layer, as tensors of one file."""

from __future__ import annotations

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import Report
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Elem, Quant
from irloom.ir.graph import Module, Param
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.weights import materialize

from .program import Program
from .quantized import Operand, Quantized
from .runner import Weights

FILE = "weights.safetensors"
Value = torch.Tensor | QuantizedTensor


def bound(program: Program) -> list[tuple[str, Param, int | None]]:
    """Every weight as launches read it: a name, the parameter, the layer."""
    layers: dict[str, dict[int | None, None]] = {"main": {None: None}}
    for c, layer, _ in program.module.calls():
        layers.setdefault(c.callee, {})[layer] = None
    read = set(program.weights)
    return [
        (f"{f.name}.{p.name}.{layer}", p, layer)
        for f in program.functions.values()
        for p in f.params
        if p in read
        for layer in layers[f.name]
    ]


def value_of(p: Param, layer: int | None, checkpoint: Checkpoint, m: Module) -> Value:
    """The value of a weight as its type says it."""
    assert p.weight is not None
    x = materialize(p.weight, checkpoint, layer, m.consts)
    if isinstance(p.type.elem, Elem):
        x = x.dequantize() if isinstance(x, QuantizedTensor) else x
        return x.to(p.type.elem.torch)
    return x


def operand_of(x: Value, device: torch.device) -> Operand:
    """A value on a device."""
    if isinstance(x, torch.Tensor):
        return x.contiguous().to(device)
    zeros = None if x.zeros is None else x.zeros.to(device)
    return Quantized(x.packed().contiguous().to(device), x.scales.to(device), zeros, x.quant)


def write_weights(out: EngineWriter, program: Program, checkpoint: Checkpoint, report: Report) -> None:
    """Store every weight as its type says it."""
    from safetensors.torch import save_file

    named = bound(program)
    tensors: dict[str, torch.Tensor] = {}
    for done, (name, p, layer) in enumerate(named):
        report("weights", done, len(named))
        x = value_of(p, layer, checkpoint, program.module)
        if isinstance(x, torch.Tensor):
            tensors[name] = x.contiguous().clone()
            continue
        tensors |= {f"{name}:values": x.packed().contiguous(), f"{name}:scales": x.scales.contiguous()}
        if x.zeros is not None:
            tensors[f"{name}:zeros"] = x.zeros.contiguous()
    save_file(tensors, out.file(FILE))
    report("weights", len(named), len(named))


def read_weights(engine: EngineReader, program: Program, device: torch.device) -> Weights:
    """Every weight on the device."""
    from safetensors.torch import load_file

    tensors = load_file(engine.file(FILE), device=str(device))
    held: dict[tuple[Param, int | None], Operand] = {}
    for name, p, layer in bound(program):
        if isinstance(p.type.elem, Quant):
            values, scales = tensors[f"{name}:values"], tensors[f"{name}:scales"]
            held[p, layer] = Quantized(values, scales, tensors.get(f"{name}:zeros"), p.type.elem)
        else:
            held[p, layer] = tensors[name]
    return lambda p, layer: held[p, layer]
