"""Checkpoints of ``torch.distributed.checkpoint``, which Megatron calls torch_dist.

``.metadata``, a pickle, says for each tensor its dims, its chunks, and for each chunk which bytes of which
file hold it. Each of those runs of bytes is a ``torch.save`` file of one tensor. All is checked against the
files when the checkpoint is opened, each chunk's own header when it is read.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irloom.frontends.nemo.archive import Extent, Files, inside
from irloom.frontends.nemo.laid import Laid, Piece
from irloom.frontends.nemo.savefile import read_saved
from irloom.frontends.nemo.unpickle import LIMIT, Inert, Unreadable, load_pickle
from irloom.ir.elem import Elem
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored

_CELLS = 1 << 24
_DISAGREES = "the checkpoint is damaged, or files of two checkpoints are mixed"


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk of tensor ``key``, in a torch.save file of its own."""

    key: str
    extent: Extent
    dims: tuple[int, ...]
    elem: Elem

    def locate(self) -> Stored:
        return _located(self)


@functools.lru_cache(maxsize=4096)
def _located(chunk: Chunk) -> Stored:
    found = read_saved(chunk.extent)
    if isinstance(found, Unreadable):
        raise CheckpointError(f"{chunk.extent.path}: a chunk of `{chunk.key}`: {found.why}", hint=_DISAGREES)
    if not isinstance(found, Stored) or (found.dims, found.elem) != (chunk.dims, chunk.elem):
        held = f"{found.elem}{list(found.dims)}" if isinstance(found, Stored) else "no tensor"
        raise CheckpointError(
            f"{chunk.extent.path}: a chunk of `{chunk.key}` is {held}, but .metadata makes it"
            f" {chunk.elem}{list(chunk.dims)}",
            hint=_DISAGREES,
        )
    return found


class Distributed:
    """The tensors of a torch_dist folder, and the objects that lie beside them."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files, self._folder = files, f"{folder}/" if folder else ""
        extent = files.extent(f"{self._folder}.metadata")
        metadata = load_pickle(extent.read(LIMIT), extent.path)
        self._where = {_index(key): info for key, info in _fields(metadata, "storage_data").items()}
        self._about = _fields(metadata, "state_dict_metadata")

    def tensors(self, wanted: Any = lambda key: True) -> dict[str, Laid]:
        """Every tensor that ``wanted`` says yes to, by its key."""
        found: dict[str, Laid] = {}
        for key, about in self._about.items():
            if isinstance(key, str) and isinstance(about, Inert) and "chunks" in about.said and wanted(key):
                found[key] = self._tensor(key, about)
        return found

    def object(self, prefix: str) -> Any:
        """The object saved below ``prefix``, such as ``common_state``; None where there is none."""
        for (key, offsets), info in self._where.items():
            if offsets is None and key.partition("/")[0] == prefix:
                found = read_saved(self._extent(key, info))
                return found[0] if isinstance(found, list) and len(found) == 1 else found
        return None

    def _tensor(self, key: str, about: Inert) -> Laid:
        dims, elem = _lengths(about.said.get("size")), _elem(about.said.get("properties"))
        if dims is None or elem is None:
            raise CheckpointError(
                f"{self._files.path}: .metadata gives no dims or no dtype for `{key}`", hint=_DISAGREES
            )
        pieces = tuple(self._piece(key, chunk, elem) for chunk in about.said["chunks"])
        if fault := tiling_fault(dims, [(p.at, p.dims) for p in pieces]):
            raise CheckpointError(
                f"{self._files.path}: the chunks of `{key}` {list(dims)} {fault}", hint=_DISAGREES
            )
        return Laid(dims, elem, pieces)

    def _piece(self, key: str, chunk: Any, elem: Elem) -> Piece:
        said = chunk.said if isinstance(chunk, Inert) else {}
        at, dims = _lengths(said.get("offsets")), _lengths(said.get("sizes"))
        if at is None or dims is None or len(at) != len(dims):
            raise CheckpointError(
                f"{self._files.path}: .metadata describes a chunk of `{key}` wrongly", hint=_DISAGREES
            )
        info = self._where.get((key, at))
        if info is None:
            raise CheckpointError(
                f"{self._files.path}: .metadata says not where the chunk of `{key}` at {list(at)} is",
                hint=_DISAGREES,
            )
        return Piece(Chunk(key, self._extent(key, info), dims, elem), 0, dims, at)

    def _extent(self, key: str, info: Any) -> Extent:
        said = info.said if isinstance(info, Inert) else {}
        file, start, nbytes = said.get("relative_path"), said.get("offset"), said.get("length")
        if not isinstance(file, str) or type(start) is not int or type(nbytes) is not int:
            raise CheckpointError(f"{self._files.path}: .metadata says not where `{key}` is", hint=_DISAGREES)
        if said.get("transform_descriptors"):
            raise CheckpointError(
                f"{self._files.path}: `{key}` is stored compressed ({said['transform_descriptors']})",
                hint="save the checkpoint again without compression",
            )
        name = self._folder + inside(file, self._files.path)
        if name not in self._files:
            raise CheckpointError(
                f"{self._files.path}: the shard `{name}` is missing, which holds `{key}`",
                hint="fetch every file of the checkpoint",
            )
        whole = self._files.extent(name)
        if min(start, nbytes) < 0 or start + nbytes > whole.nbytes:
            raise CheckpointError(
                f"{self._files.path}: `{key}` ends at byte {start + nbytes} of `{name}`, which has"
                f" {whole.nbytes}",
                hint=_DISAGREES,
            )
        return whole.part(start, nbytes)


def tiling_fault(dims: Sequence[int], boxes: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> str | None:
    """Why ``boxes`` (offsets, sizes) do not cover ``dims`` once each; None when they do.

    >>> tiling_fault((4, 2), [((0, 0), (1, 2)), ((1, 0), (3, 2))])
    >>> tiling_fault((4, 2), [((0, 0), (3, 2)), ((1, 0), (3, 2))])
    'overlap'
    """
    boxes = list(boxes)
    for at, sizes in boxes:
        if len(at) != len(dims) or any(a + n > d for a, n, d in zip(at, sizes, dims, strict=True)):
            return "reach past its end"
    volume = sum(math.prod(sizes) for _, sizes in boxes)
    if volume != math.prod(dims):
        return "overlap" if volume > math.prod(dims) else "leave a part of it out"
    if len(boxes) == 1:
        return None
    edges = [
        sorted({0, dims[d], *(at[d] for at, _ in boxes), *(at[d] + n[d] for at, n in boxes)})
        for d in range(len(dims))
    ]
    counts = [len(e) - 1 for e in edges]
    if math.prod(counts) > _CELLS:
        return "are cut too finely"
    cells = np.zeros(counts, dtype=bool)
    places = [{edge: i for i, edge in enumerate(e)} for e in edges]
    for at, sizes in boxes:
        box = tuple(slice(p[a], p[a + n]) for p, a, n in zip(places, at, sizes, strict=True))
        if cells[box].any():
            return "overlap"
        cells[box] = True
    return None


def _index(key: Any) -> tuple[str, tuple[int, ...] | None]:
    """A chunk's key: the tensor's, and the chunk's offsets in it; None for an object."""
    said = key.said if isinstance(key, Inert) else {}
    return str(said.get("fqn")), _lengths(said.get("offset"))


def _fields(record: Any, name: str) -> dict[Any, Any]:
    found = record.said.get(name) if isinstance(record, Inert) else None
    if not isinstance(found, dict):
        raise CheckpointError(
            f".metadata holds no `{name}`", hint="it is none of torch.distributed.checkpoint"
        )
    return found


def _lengths(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, tuple | list) or not all(type(n) is int and n >= 0 for n in value):
        return None
    return tuple(value)


def _elem(properties: Any) -> Elem | None:
    """The dtype of a ``TensorProperties``, which torch pickles as a tuple or as fields."""
    if not isinstance(properties, Inert):
        return None
    state = properties.state if isinstance(properties.state, tuple) else ()
    held = itertools.chain(state, properties.said.values(), properties.args)
    return next((v for v in held if isinstance(v, Elem)), None)
