"""An engine's weights: each once, in the engine or where the checkpoint has it, mapped when it opens.

A weight that the networks take as the checkpoint stores it is a link. The others are the tensors of
``weights.safetensors``, computed and written one at a time, entries of four bits two a byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import Report
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import ELEMS, Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Param
from irloom.ir.mapped import map_tensor
from irloom.ir.quantized import unpack4
from irloom.ir.safetensors import Stored, read_header
from irloom.ir.weight_expr import Tensor as Stands
from irloom.ir.weight_expr import tensor_name

from .engine import outside_weights
from .forms import value_of
from .network import Tensor
from .program import Program, Source
from .weights import packed

FILE = "weights.safetensors"
LINK = "weight "
ALIGN = 64
DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_weights(program: Program, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
    """Link to each weight that lies in the checkpoint as it is, and write the others."""
    wanted = dict(_wanted(program))
    own: dict[str, tuple[Tensor, Source]] = {}
    for name, (t, source) in wanted.items():
        at = unchanged(source, checkpoint)
        if at is not None and at.dims == t.dims:
            out.link(LINK + name, at.path, at.offset, at.offset + at.nbytes)
        else:
            own[name] = t, source
    order = sorted(own.values(), key=lambda one: -one[0].elem.torch.itemsize)  # so that all lie aligned
    with out.file(FILE).open("wb") as file:
        file.write(_header([t for t, _ in order]))
        for done, (t, source) in enumerate(order):
            report("weights", done, len(order))
            value = value_of(source, checkpoint, program.module)
            if tuple(value.shape) != t.dims or value.dtype != t.elem.torch:
                raise IRError(f"weight {t} comes as {value.dtype}{list(value.shape)}")
            stored = packed(t.elem, value) if halved(t) else value.contiguous()
            file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
            del value
    report("weights", len(order), len(order))


def _wanted(program: Program) -> Iterator[tuple[str, tuple[Tensor, Source]]]:
    """Every weight by the name it is stored under: those of networks, then those of bodies."""
    for segment in program.segments:
        for t in segment.network.weights:
            yield t.name, (t, program.weights[t.name])
    for p in outside_weights(program):
        t = _of_body(p)
        yield t.name, (t, Source(p))


def _of_body(p: Param) -> Tensor:
    """What a body takes of a parameter: its values, in f32 where they are quantized."""
    elem = p.type.elem if isinstance(p.type.elem, Elem) else ELEMS["f32"]
    return Tensor(f"{p.name} of a body", elem, p.type.dims)


def unchanged(source: Source, checkpoint: Checkpoint) -> Stored | None:
    """Where the checkpoint holds the bytes that a network takes; None where something is done to them."""
    expr, elem = source.param.weight, source.param.type.elem
    if source.form or not isinstance(expr, Stands):
        return None
    name = tensor_name(expr.name, None)
    return checkpoint.stored(name) if checkpoint.elem(name) == elem else None


def halved(t: Tensor) -> bool:
    """Whether two entries share a byte in the file; torch has no such tensor."""
    return t.elem.bits == 4 and t.elem.kind != "float"


class Weights:
    """The weights of an engine that opens: each is a mapping of its bytes, read when it is used."""

    def __init__(self, engine: EngineReader) -> None:
        self.own = read_header(engine.file(FILE))
        self.links = {
            name.removeprefix(LINK): link
            for name, link in engine.manifest.links.items()
            if name.startswith(LINK)
        }

    def __call__(self, t: Tensor) -> torch.Tensor:
        """The value of a weight, as networks take it."""
        dims = tuple(d for d in t.dims if isinstance(d, int))
        if (link := self.links.get(t.name)) is not None:
            return map_tensor(Path(link.file), link.start, dims, t.elem.torch)
        at = self.own[t.name]
        if halved(t):
            both = unpack4(map_tensor(at.path, at.offset, at.dims, torch.uint8), t.elem)
            return both[: math.prod(dims)].reshape(dims)
        return map_tensor(at.path, at.offset, dims, t.elem.torch)

    def of_body(self, p: Param) -> torch.Tensor:
        """The value of a weight that an op reads which runs its body."""
        return self(_of_body(p))


def _header(tensors: list[Tensor]) -> bytes:
    """The start of a safetensors file of these tensors, in this order."""
    header: dict[str, Any] = {}
    at = 0
    for t in tensors:
        dims, dtype = [d for d in t.dims if isinstance(d, int)], t.elem.torch
        if halved(t):
            dims, dtype = [-(-math.prod(dims) // 2)], torch.uint8
        size = math.prod(dims) * dtype.itemsize
        header[t.name] = {
            "dtype": DTYPES[dtype],
            "shape": dims,
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    return len(text).to_bytes(8, "little") + text
