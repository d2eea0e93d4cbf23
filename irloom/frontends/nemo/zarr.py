"""Checkpoints in zarr format 2, as Megatron wrote them until 2025: a folder a tensor, raw chunks in it."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

from irloom.frontends.nemo.archive import Files
from irloom.frontends.nemo.laid import Laid, Piece, Placed
from irloom.ir.elem import ELEMS, Elem
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored

_ELEMS = {
    "bfloat16": "bf16",
    "<f8": "f64",
    "<f4": "f32",
    "<f2": "f16",
    "<i8": "i64",
    "<i4": "i32",
    "|u1": "u8",
}
_HEADER = "/.zarray"
_CHUNKS = 1 << 22


class Zarr:
    """The tensors of a folder of zarr arrays."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files, self._folder = files, f"{folder}/" if folder else ""
        self._keys = [n.removesuffix(_HEADER) for n in files.names(folder) if n.endswith(_HEADER)]

    def tensors(self, wanted: Any = lambda key: True) -> dict[str, Laid]:
        """Every tensor that ``wanted`` says yes to, by its key."""
        return {key: self._tensor(key) for key in self._keys if wanted(key)}

    def _tensor(self, key: str) -> Laid:
        dims, chunk, elem, dot = self._header(key)
        if any(c < 1 or n % c for n, c in zip(dims, chunk, strict=True)):
            raise self._error(key, f"chunks {list(chunk)} do not divide {list(dims)}")
        counts = [n // c for n, c in zip(dims, chunk, strict=True)]
        if math.prod(counts) > _CHUNKS:
            raise self._error(key, f"claims {math.prod(counts)} chunks")
        pieces = tuple(
            self._piece(key, index, chunk, elem, dot)
            for index in itertools.product(*[range(count) for count in counts])
        )
        return Laid(dims, elem, pieces)

    def _piece(self, key: str, index: tuple[int, ...], chunk: tuple[int, ...], elem: Elem, dot: str) -> Piece:
        name = f"{self._folder}{key}/{dot.join(map(str, index)) or '0'}"
        if name not in self._files:
            raise CheckpointError(
                f"{self._files.path}: the chunk `{name}` is missing",
                hint="fetch every file of the checkpoint",
            )
        extent, nbytes = self._files.extent(name), math.prod(chunk) * elem.bits // 8
        if extent.nbytes != nbytes:
            raise self._error(key, f"its chunk {list(index)} has {extent.nbytes} bytes, not {nbytes}")
        at = tuple(i * c for i, c in zip(index, chunk, strict=True))
        return Piece(Placed(Stored(extent.path, extent.offset, chunk, elem)), 0, chunk, at)

    def _header(self, key: str) -> tuple[tuple[int, ...], tuple[int, ...], Elem, str]:
        try:
            header = json.loads(self._files.text(f"{self._folder}{key}{_HEADER}"))
            dims, chunk = (tuple(int(n) for n in header[k]) for k in ("shape", "chunks"))
            dtype, plain = header["dtype"], header["order"] == "C" and not header.get("filters")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._error(key, "its .zarray does not say shape, chunks, dtype and order") from None
        if len(dims) != len(chunk) or min((0, *dims)) < 0:
            raise self._error(key, f"chunks {list(chunk)} do not divide {list(dims)}")
        if header.get("compressor") or not plain:
            raise CheckpointError(
                f"{self._files.path}: `{key}` is compressed, filtered or not in C order",
                hint="Megatron writes plain zarr; save the checkpoint again as torch_dist",
            )
        if not isinstance(dtype, str) or dtype not in _ELEMS:
            raise self._error(key, f"its dtype {dtype!r} is not one of {', '.join(_ELEMS)}")
        dot = header.get("dimension_separator", ".")
        return dims, chunk, ELEMS[_ELEMS[dtype]], "/" if dot == "/" else "."

    def _error(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._files.path}: `{key}`: {what}", hint="the checkpoint is damaged, or not of Megatron"
        )
