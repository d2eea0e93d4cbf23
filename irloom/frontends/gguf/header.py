"""The header of a GGUF file: metadata, and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length and count is checked against
the file before anything is read through it; ``CheckpointError`` says which one lies.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.ir.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
TOKENS = "tokenizer.ggml.tokens"
_MAX_DIMS = 4


@dataclass(frozen=True)
class Entry:
    """One tensor: ``dims`` in torch's order, ``kind`` as in ``gguf.GGMLQuantizationType``.

    ``offset`` counts bytes from the start of the file.
    """

    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself. Arrays of strings (the vocabulary) are kept as their length.

    ``spans`` are the bytes of each metadata entry, its key included, as they are in the file.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    entries: dict[str, Entry]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the model's kind."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise CheckpointError(f"{self.path}: no `general.architecture` in its metadata")
        return name

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, which may be more than there are tokens."""
        embedding = self.entries.get("token_embd.weight")
        count = embedding.dims[0] if embedding and embedding.dims else self.metadata.get(TOKENS)
        if not isinstance(count, int):
            raise CheckpointError(f"{self.path}: neither `token_embd.weight` nor `{TOKENS}`")
        return count

    def fact(self, key: str, default: Any) -> Any:
        """What the metadata says of this architecture under ``key``; a number where ``default`` is one."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(default, int | float) and not isinstance(value, int | float):
            raise CheckpointError(f"{self.path}: `{self.architecture}.{key}` is {value!r}, not a number")
        return value

    @staticmethod
    def decimal(value: Any) -> Any:
        """A number that the file holds in 32 bits as the decimal it was: 1e-06, not 9.999999974752427e-07."""
        import numpy as np

        if isinstance(value, float) and float(np.float32(value)) == value:
            return float(str(np.float32(value)))
        return value


def find_gguf(path: Path) -> Path:
    """The one GGUF file that ``path`` is or holds."""
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        names = (
            f"{len(files)} GGUF files: {', '.join(f.name for f in files[:4])}" if files else "no GGUF file"
        )
        raise CheckpointError(f"{path}: {names}", hint="give the path of one file")
    return files[0]


def read_header(path: Path) -> Header:
    """Read the header of the file that ``path`` is or holds, and nothing of its tensors."""
    path = find_gguf(path)
    size = path.stat().st_size
    if size < 24:
        raise CheckpointError(f"{path}: {size} bytes are no GGUF file", hint="fetch the file again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(path, data).header()


class _Reader:
    """A cursor over the file that refuses to leave it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def header(self) -> Header:
        if (magic := bytes(self.data[:4])) != b"GGUF":
            raise CheckpointError(
                f"{self.path}: begins with {magic!r}, not with b'GGUF'", hint="is it a GGUF file?"
            )
        self.at = 4
        version = self.scalar("I", "version")
        if version not in (2, 3):
            why = "is big-endian" if version & 0xFFFF == 0 else f"has version {version}"
            raise CheckpointError(
                f"{self.path}: {why}", hint="irloom reads little-endian GGUF versions 2 and 3"
            )
        tensors, pairs = self.scalar("Q", "tensor count"), self.scalar("Q", "metadata count")
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for i in range(pairs):
            start = self.at
            key = self.string(f"key {i + 1} of {pairs}")
            metadata[key] = self.value(self.scalar("I", f"`{key}`"), f"`{key}`")
            spans[key] = (start, self.at)
        found = [self.entry(i, tensors) for i in range(tensors)]
        return Header(self.path, version, metadata, spans, self.placed(found, metadata))

    def take(self, nbytes: int, what: str) -> int:
        """Step over ``nbytes`` and return where they begin."""
        start = self.at
        if nbytes > self.size - start:
            raise CheckpointError(
                f"{self.path}: {what} at byte {start} takes {nbytes} bytes, but the file has {self.size}",
                hint="the file is damaged, or its download is incomplete",
            )
        self.at = start + nbytes
        return start

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize(code)
        return struct.unpack_from(f"<{code}", self.data, self.take(size, what))[0]

    def string(self, what: str) -> str:
        length = self.scalar("Q", what)
        start = self.take(length, what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path}: {what} at byte {start} is not UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            raise CheckpointError(f"{self.path}: {what} has the unknown type {kind}")
        inner, count = self.scalar("I", what), self.scalar("Q", what)
        if inner in _SCALARS:
            start = self.take(count * struct.calcsize(_SCALARS[inner]), what)
            return list(struct.unpack_from(f"<{count}{_SCALARS[inner]}", self.data, start))
        if inner != _STRING:
            raise CheckpointError(
                f"{self.path}: {what} is an array of the type {inner}, which irloom does not read"
            )
        for _ in range(count):
            self.take(self.scalar("Q", what), what)
        return count

    def entry(self, i: int, count: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string(f"name of tensor {i + 1} of {count}")
        rank = self.scalar("I", f"`{name}`")
        if rank > _MAX_DIMS:
            raise CheckpointError(f"{self.path}: `{name}` claims {rank} dims; GGUF has at most {_MAX_DIMS}")
        dims = tuple(self.scalar("Q", f"`{name}`") for _ in range(rank))
        return name, dims[::-1], self.scalar("I", f"`{name}`"), self.scalar("Q", f"`{name}`")

    def placed(
        self, found: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
    ) -> dict[str, Entry]:
        """Check each tensor's bytes against the file, now that it is known where tensors begin."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1 or align & (align - 1):
            raise CheckpointError(f"{self.path}: `general.alignment` is {align}, which is no power of two")
        begin = -(-self.at // align) * align
        sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
        entries: dict[str, Entry] = {}
        for name, dims, kind, offset in found:
            if kind not in sizes:
                raise CheckpointError(f"{self.path}: `{name}` has the unknown tensor type {kind}")
            block, block_bytes = sizes[kind]
            if dims and dims[-1] % block:
                shown = GGMLQuantizationType(kind).name
                raise CheckpointError(
                    f"{self.path}: `{name}` is {shown}{list(dims)}, not in blocks of {block}"
                )
            if name in entries:
                raise CheckpointError(f"{self.path}: `{name}` is there twice")
            nbytes = math.prod(dims) // block * block_bytes
            if (end := begin + offset + nbytes) > self.size:
                raise CheckpointError(
                    f"{self.path}: `{name}` ends at byte {end}, but the file has {self.size}",
                    hint="the download may be incomplete; fetch the file again",
                )
            entries[name] = Entry(name, dims, kind, begin + offset, nbytes)
        return entries
