"""The file of weights: safetensors, whose byte ranges are what the ONNX model names as its external data.

So it is read by whatever reads safetensors, and mapped by ONNX Runtime. It is written weight by weight, each
freed before the next: of a model only its largest weight is ever in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from irloom.backends.core import Report
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Elem
from irloom.ir.weights import Consts, materialize

from .weights import Stored

ALIGN = 4096
"""Bytes: where the data begins, a page of memory. Behind it lie the large tensors first."""

DTYPES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2",
    "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8", "u8": "U8", "bool": "BOOL",
}  # fmt: skip

Places = dict[str, tuple[int, int]]
"""Where each weight lies in the file: its first byte, and how many there are."""


def write(
    weights: Iterable[Stored], checkpoint: Checkpoint, consts: Consts, path: Path, report: Report
) -> Places:
    """Write ``weights`` to ``path``; parts of one parameter are made from one reading of it."""
    order = sorted(weights, key=lambda w: -w.nbytes)
    start, places, header = _layout(order)
    by_param: dict[Any, list[Stored]] = {}
    for w in order:
        by_param.setdefault(w.param, []).append(w)
    with path.open("wb") as file:
        file.write(header)
        for done, (param, parts) in enumerate(by_param.items()):
            report("weights", done, len(by_param))
            assert param.weight is not None
            value = materialize(param.weight, checkpoint, None, consts)
            for w in parts:
                offset, length = places[w.name]
                raw = w.of(value).reshape(-1).view(_bytes()).numpy()
                assert raw.nbytes == length, f"{w.name}: {raw.nbytes} bytes, not {length}"
                file.seek(offset)
                file.write(raw.data)
            del value
        file.truncate(max((o + n for o, n in places.values()), default=start))
    report("weights", len(by_param), len(by_param))
    return places


def _bytes() -> Any:
    import torch

    return torch.uint8


def _layout(order: list[Stored]) -> tuple[int, Places, bytes]:
    """Where the data starts, where each weight lies, and the header that says so."""
    entries: dict[str, Any] = {}
    at = 0
    for w in order:
        entries[w.name] = {**_shape(w.elem, w.dims, w.nbytes), "data_offsets": [at, at + w.nbytes]}
        at += w.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    start = 8 + len(text)
    places = {w.name: (start + entries[w.name]["data_offsets"][0], w.nbytes) for w in order}
    return start, places, len(text).to_bytes(8, "little") + text


def _shape(elem: Elem, dims: tuple[int, ...], nbytes: int) -> dict[str, Any]:
    """Element and dims as the format has them; four-bit entries are bytes there."""
    if elem.bits == 4:
        return {"dtype": "U8", "shape": [nbytes]}
    return {"dtype": DTYPES[elem.name], "shape": list(dims)}
