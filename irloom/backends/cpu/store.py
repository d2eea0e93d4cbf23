"""An engine's weights: one safetensors file of packed bytes, mapped when the engine opens and never copied.

Every entry is a multiple of 64 bytes and the data starts at one: packed panels lie as kernels read them best.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

ALIGN = 64


@dataclass(frozen=True)
class Entry:
    """What is stored under a name: how many bytes, and how to see them (a layout, or element and dims)."""

    bytes: int
    facts: Mapping[str, Any]


class Writer:
    """Writes entries of known sizes one after another, in the order they were declared."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.entries, self.todo = entries, iter(entries)
        header: dict[str, Any] = {
            "__metadata__": {name: json.dumps(dict(e.facts)) for name, e in entries.items() if e.facts}
        }
        at = 0
        for name, e in entries.items():
            size = _up(e.bytes)
            header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGN)
        self.file: BinaryIO = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, data: torch.Tensor) -> None:
        """The next entry's bytes."""
        expected = next(self.todo)
        raw = data.contiguous().reshape(-1).view(torch.uint8)
        assert name == expected and raw.numel() == self.entries[name].bytes, (
            f"{name}: {raw.numel()} bytes, {expected} is due"
        )
        self.file.write(raw.numpy().data)
        self.file.write(b"\0" * (_up(raw.numel()) - raw.numel()))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        left = next(self.todo, None)
        assert kind is not None or left is None, f"{left} was not written"


class Reader:
    """Entries as views of the mapped file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as f:
            self.map = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
        size = int.from_bytes(self.map[:8], "little")
        self.header: dict[str, Any] = json.loads(self.map[8 : 8 + size])
        self.data = torch.frombuffer(self.map, dtype=torch.uint8, offset=8 + size)

    def bytes(self, name: str, count: int) -> torch.Tensor:
        """The first ``count`` bytes of an entry."""
        start, stop = self.header[name]["data_offsets"]
        assert count <= stop - start
        return self.data[start : start + count]

    def facts(self, name: str) -> dict[str, Any]:
        """What was written about an entry."""
        return json.loads(self.header["__metadata__"][name])

    def tensor(self, name: str, dtype: torch.dtype, dims: tuple[int, ...]) -> torch.Tensor:
        """An entry as a tensor."""
        n = torch.Size(dims).numel() * dtype.itemsize
        return self.bytes(name, n).view(dtype).reshape(dims)


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN
