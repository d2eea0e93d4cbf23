"""The weights that a program's launches read: each for every layer that it is bound in."""

from __future__ import annotations

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import Report
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module, Param

from . import weight_store
from .program import Program
from .quantized import Operand, Quantized
from .runner import Weights
from .weight_store import Value, Wanted


def bound(program: Program) -> dict[tuple[Param, int | None], Wanted]:
    """Every weight as launches read it, by its parameter and the layer."""
    layers: dict[str, dict[int | None, None]] = {"main": {None: None}}
    for c, layer, _ in program.module.calls():
        layers.setdefault(c.callee, {})[layer] = None
    read = set(program.weights)
    return {
        (p, layer): _wanted(f"{f.name}.{p.name}.{layer}", p, layer)
        for f in program.functions.values()
        for p in f.params
        if p in read
        for layer in layers[f.name]
    }


def _wanted(name: str, p: Param, layer: int | None) -> Wanted:
    assert p.weight is not None
    return Wanted(name, p.weight, layer, p.type)


def value_of(p: Param, layer: int | None, checkpoint: Checkpoint, m: Module) -> Value:
    """The value of a weight as its type says it."""
    return _wanted(p.name, p, layer).value(checkpoint, m.consts)


def operand_of(x: Value, device: torch.device) -> Operand:
    """A value on a device."""
    if isinstance(x, torch.Tensor):
        return x.contiguous().to(device)
    zeros = None if x.zeros is None else x.zeros.to(device)
    return Quantized(x.packed().contiguous().to(device), x.scales.to(device), zeros, x.quant)


def write_weights(out: EngineWriter, program: Program, checkpoint: Checkpoint, report: Report) -> None:
    """Store every weight, or a link to its bytes; what has to be computed is, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight_store.write(out, bound(program).values(), checkpoint, report, program.module.consts, device)


def read_weights(engine: EngineReader, program: Program, device: torch.device) -> Weights:
    """Every weight on the device."""
    wanted = bound(program)
    held = weight_store.read(engine, wanted.values(), device)
    by_place = {place: held[w.name] for place, w in wanted.items()}
    return lambda p, layer: by_place[p, layer]


def stored_bytes(engine: EngineReader) -> int:
    """Bytes of all weights."""
    return weight_store.stored_bytes(engine)
