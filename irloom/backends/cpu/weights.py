"""From the weights a program binds to the bytes kernels read: packed once at build, mapped at open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from irloom.backends.core import Report
from irloom.backends.cpu.elements import FLOATS
from irloom.backends.cpu.pack import Layout, Packed, allocate, pack, pack_quantized
from irloom.backends.cpu.program import Bound, Program
from irloom.backends.cpu.store import Entry, Reader, Writer
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Elem, Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Module, Param
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.weights import materialize, weight_type

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def write_weights(path: Path, program: Program, m: Module, checkpoint: Checkpoint, report: Report) -> None:
    """Pack every weight of ``program`` into ``path``, one tensor in memory at a time."""
    plan = list(_entries(program, m, checkpoint))
    with Writer(path, {name: entry for name, entry, _, _, _ in plan}) as writer:
        for done, (name, entry, bound, param, layer) in enumerate(plan):
            report("weights", done, len(plan))
            value = _read(param, checkpoint, layer, m)
            packed = bound.form == "packed" and param is bound.param
            writer.put(name, packed_bytes(value, Layout(**entry.facts)) if packed else _plain(value))
            del value
    report("weights", len(plan), len(plan))


def read_weights(path: Path, program: Program, int8_activations: bool) -> dict[str, Any]:
    """What each bound name stands for: a packed weight or a tensor, or one per layer."""
    store = Reader(path)
    out: dict[str, Any] = {}
    for bound in program.weights.values():
        one = {layer: _open(store, bound, layer, int8_activations) for layer in bound.layers or (None,)}
        out[bound.name] = one[None] if bound.layers is None else one
    return out


def _entries(
    program: Program, m: Module, checkpoint: Checkpoint
) -> Iterator[tuple[str, Entry, Bound, Param, int | None]]:
    for bound in program.weights.values():
        for layer in bound.layers or (None,):
            if bound.bytes == bound.name:
                yield _name(bound.name, layer), _entry(bound, m, checkpoint, layer), bound, bound.param, layer
            if bound.bias is not None:
                entry = Entry(math.prod(_dims(bound.bias)) * 4, {})
                yield _name(bound.name, layer) + ".bias", entry, bound, bound.bias, layer


def _entry(bound: Bound, m: Module, checkpoint: Checkpoint, layer: int | None) -> Entry:
    if bound.form != "packed":
        return Entry(math.prod(_dims(bound.param)) * _dtype(bound.param).itemsize, {})
    layout = layout_of(bound.param, m, checkpoint, layer)
    return Entry(layout.bytes, asdict(layout))


def layout_of(p: Param, m: Module, checkpoint: Checkpoint, layer: int | None) -> Layout:
    """How a weight is packed. Half floats stay as they are: widening them in a register is exact."""
    elem = p.type.elem
    *experts, n, k = _dims(p)
    stack = math.prod(experts)
    if isinstance(elem, Quant):
        if elem.base.name not in ("i4", "i8") or elem.scale.name not in FLOATS or elem.rows != 1:
            raise IRError(
                f"cpu: no kernel for weight {p.name} of {elem.declaration()}",
                hint="quantize(int8) or quantize(int4), or --target reference",
            )
        return Layout(n, k, elem.base.name, elem.group or k, elem.scale.name, elem.zero is not None, stack)
    assert p.weight is not None
    stored = weight_type(p.weight, checkpoint, layer, m.consts).elem
    kind = stored.name if isinstance(stored, Elem) and stored.name in FLOATS else "f32"
    return Layout(n, k, kind, stack=stack)


def _read(p: Param, checkpoint: Checkpoint, layer: int | None, m: Module) -> torch.Tensor | QuantizedTensor:
    assert p.weight is not None
    value = materialize(p.weight, checkpoint, layer, m.consts)
    if tuple(value.values.shape if isinstance(value, QuantizedTensor) else value.shape) != p.type.dims:
        raise IRError(f"weight `{p.name}` does not come as its type {p.type} from {checkpoint.path}")
    return value


def packed_bytes(value: torch.Tensor | QuantizedTensor, layout: Layout) -> torch.Tensor:
    """The bytes of a matrix, or of the matrices of a stack, one packed after another."""
    if isinstance(value, QuantizedTensor):
        tables = [t for t in (value.values, value.scales, value.zeros) if t is not None]
    else:
        tables = [value.to(DTYPES[layout.kind])]
    if tables[0].ndim == 2:
        return _matrix(tables, layout)
    out = allocate(layout.bytes)
    for expert, to in enumerate(out.split(layout.each)):
        to.copy_(_matrix([t[expert] for t in tables], layout))
    return out


def _matrix(tables: list[torch.Tensor], layout: Layout) -> torch.Tensor:
    """Packed bytes of one matrix: its values, and where it is quantized its scales and zeros."""
    if not layout.low_bit:
        return pack(tables[0]).data
    bits = 4 if layout.kind == "i4" else 8
    return pack_quantized(*tables, bits=bits, group=layout.group).data


def _plain(value: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    value = value.dequantize() if isinstance(value, QuantizedTensor) else value
    return value.float() if value.is_floating_point() else value


def _dtype(p: Param) -> torch.dtype:
    """What a weight that is not packed is held in: f32, or an integer or truth value as it is."""
    own = torch.float32 if isinstance(p.type.elem, Quant) else p.type.plain.torch
    return torch.float32 if own.is_floating_point else own


def _open(store: Reader, bound: Bound, layer: int | None, int8_activations: bool) -> Packed | torch.Tensor:
    name, dims = _name(bound.bytes, layer), _dims(bound.param)
    if bound.form != "packed":
        return store.tensor(name, _dtype(bound.param), dims)
    layout = Layout(**store.facts(name))
    bias = None
    if bound.bias is not None:
        bias = store.tensor(_name(bound.name, layer) + ".bias", torch.float32, _dims(bound.bias))
    return Packed(layout, store.bytes(name, layout.bytes), bias, int8_activations)


def _name(name: str, layer: int | None) -> str:
    return name if layer is None else f"{name}.{layer}"


def _dims(p: Param) -> tuple[int, ...]:
    return tuple(d for d in p.type.dims if isinstance(d, int))


def size(weights: Mapping[str, Any]) -> int:
    """Bytes of all packed weights: what a decode step must read."""
    held: dict[int, int] = {}
    for value in weights.values():
        for one in value.values() if isinstance(value, dict) else (value,):
            tensor = one.data if isinstance(one, Packed) else one
            held[tensor.data_ptr()] = tensor.nbytes
    return sum(held.values())
