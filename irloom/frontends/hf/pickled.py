"""PyTorch's ``.bin`` files: names, dims and places of tensors, read without running what the pickle asks for.

The pickle is read by torch's own restricted unpickler (``weights_only``) under fake tensors, which tells
where in the archive each storage lies and touches none of them. Values are then mapped from the file, as
those of safetensors are.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from irloom.ir.checkpoint import absent, row_steps
from irloom.ir.elem import Elem, Quant, elem_of
from irloom.ir.errors import CheckpointError, IRError
from irloom.ir.mapped import map_rows, map_tensor
from irloom.ir.safetensors import Stored, read_index

if TYPE_CHECKING:
    from irloom.ir.quantized import QuantizedTensor

INDEX, SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
_INCOMPLETE = "the download may be incomplete; fetch the file again"


@dataclass(frozen=True)
class Pickled:
    """A tensor in an archive: ``storage`` is its whole storage, as a vector; ``offset`` counts entries."""

    storage: Stored
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def plain(self) -> Stored | None:
        """Where its bytes lie, if they lie in order."""
        step = 1
        for dim, stride in zip(self.dims[::-1], self.strides[::-1], strict=True):
            if dim != 1 and stride != step:
                return None
            step *= dim
        at = self.storage
        return Stored(at.path, at.offset + self.offset * at.elem.bits // 8, self.dims, at.elem)


class PickledCheckpoint:
    """One ``.bin`` file, an ``.index.json`` of shards, or the directory that holds either.

    What is no dictionary of tensors, or wants to run code to become one, is refused here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        at = path / INDEX if (path / INDEX).is_file() else path / SINGLE if path.is_dir() else path
        self._found = read_index(at, read_pickled) if at.suffix == ".json" else read_pickled(at)

    def names(self) -> Sequence[str]:
        return list(self._found)

    def found(self, name: str) -> Pickled:
        if name not in self._found:
            raise absent(self, name)
        return self._found[name]

    def dims(self, name: str) -> tuple[int, ...]:
        return self.found(name).dims

    def elem(self, name: str) -> Elem:
        return self.found(name).storage.elem

    def stored(self, name: str) -> Stored | None:
        return self.found(name).plain()

    def read(self, name: str) -> torch.Tensor:
        at = self.found(name)
        plain = at.plain()
        if plain is not None:
            return map_tensor(plain.path, plain.offset, plain.dims, plain.elem.torch)
        whole = map_tensor(at.storage.path, at.storage.offset, at.storage.dims, at.storage.elem.torch)
        return whole.as_strided(at.dims, at.strides, at.offset).contiguous()

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        at = self.stored(name)
        for start, stop in row_steps(self.dims(name), self.elem(name), rows):
            yield self.read(name)[start:stop] if at is None else map_rows(at, start, stop)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None


def holds_pickle(path: Path) -> bool:
    """Whether a directory has ``.bin`` weights of the library's names."""
    return (path / INDEX).is_file() or (path / SINGLE).is_file()


def read_pickled(path: Path) -> dict[str, Pickled]:
    """What a ``.bin`` file holds, in the order of its bytes; no tensor is read, nothing of it is run."""
    records = _records(path)
    try:
        with FakeTensorMode():
            value: Any = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # whatever a damaged pickle makes torch raise
        raise _refused(path, error) from None
    if not isinstance(value, dict) or not all(isinstance(t, torch.Tensor) for t in value.values()):
        raise CheckpointError(f"{path}: is not a dictionary of tensors", hint="is it a file of weights?")
    found = {str(name): _placed(path, str(name), tensor, records) for name, tensor in value.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].storage.offset))


def _refused(path: Path, error: Exception) -> CheckpointError:
    """What torch's long message says: which global its unpickler met, or what else went wrong."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return CheckpointError(
            f"{path}: its pickle asks for `{asked[1]}`, which is no tensor",
            hint="opening it would run code; use a safetensors checkpoint",
        )
    first = (str(error).splitlines() or [""])[0]
    return CheckpointError(f"{path}: does not load: {type(error).__name__}: {first}", hint=_INCOMPLETE)


def _records(path: Path) -> dict[int, int]:
    """The members of the archive: where each begins in the file, and its bytes."""
    size = path.stat().st_size
    found: dict[int, int] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: `{member.filename}` in it is compressed")
                file.seek(member.header_offset + 26)
                start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
                if start + member.file_size > size:
                    raise CheckpointError(f"{path}: `{member.filename}` ends past the file", hint=_INCOMPLETE)
                found[start] = member.file_size
                if member.filename.endswith("/byteorder") and archive.read(member) != b"little":
                    raise CheckpointError(f"{path}: is big-endian")
    except (zipfile.BadZipFile, struct.error, NotImplementedError):
        with path.open("rb") as file:
            if file.read(1) != b"\x80":
                raise CheckpointError(f"{path}: is no archive of torch.save", hint=_INCOMPLETE) from None
        raise CheckpointError(
            f"{path}: was written by torch before 1.6",
            hint="torch.save(torch.load(path, weights_only=True), path) writes it anew",
        ) from None
    except (OSError, ValueError, RuntimeError, EOFError) as error:  # offsets that lead nowhere, encryption
        raise CheckpointError(f"{path}: its archive is damaged: {error}", hint=_INCOMPLETE) from None
    return found


def _placed(path: Path, name: str, tensor: torch.Tensor, records: dict[int, int]) -> Pickled:
    storage = tensor.untyped_storage()
    start = getattr(storage, "_checkpoint_offset", None)
    try:
        elem = elem_of(tensor.dtype)
    except IRError:
        raise CheckpointError(f"{path}: `{name}` is stored as {tensor.dtype}") from None
    if tensor.layout != torch.strided or start is None:
        raise CheckpointError(f"{path}: `{name}` is not a plain tensor")
    dims, strides, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    count = storage.nbytes() // tensor.dtype.itemsize
    last = offset + sum((d - 1) * s for d, s in zip(dims, strides, strict=True)) if 0 not in dims else -1
    held = records.get(start, 0)
    if storage.nbytes() > held or last >= count:
        raise CheckpointError(
            f"{path}: `{name}` is {elem}{list(dims)}, more than the {held} bytes stored for it",
            hint=_INCOMPLETE,
        )
    return Pickled(Stored(path, start, (count,), elem), dims, strides, offset)
