"""Where weights come from: names, dims and elements known at once, values read one tensor at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored, natural, read_header, read_index

if TYPE_CHECKING:
    import torch

    from irloom.ir.quantized import QuantizedTensor
    from irloom.ir.weight_expr import WeightExpr


BLOCK = 1 << 24
"""Bytes of a tensor that are worked on at a time."""


class Checkpoint(Protocol):
    """Named tensors. Every method raises ``CheckpointError`` for a name that it does not hold."""

    @property
    def path(self) -> Path:
        """The file or directory, for messages."""
        ...

    def names(self) -> Sequence[str]:
        """Every name, in the order in which reading is cheapest."""
        ...

    def dims(self, name: str) -> tuple[int, ...]: ...

    def elem(self, name: str) -> Elem:
        """The element of what ``read`` returns."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor. It may be backed by a mapping of the file: its memory goes with the last reference."""
        ...

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        """The tensor in the scheme ``quant``, where the file already stores exactly that; else None."""
        ...

    def stored(self, name: str) -> Stored | None:
        """Where the bytes of ``read(name)`` lie unchanged in a file, for an engine to link to; else None."""
        ...


@runtime_checkable
class BlockReader(Protocol):
    """A checkpoint that reads a tensor some rows at a time: of a large one only a few are in memory."""

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        """``rows`` (entries along the first dim) of ``read(name)``, one block after the other."""
        ...


@runtime_checkable
class Spelled(Protocol):
    """A checkpoint some of whose tensors are made of others, such as experts that a file has one by one."""

    def spelled(self, name: str) -> tuple[WeightExpr, Checkpoint] | None:
        """What ``read(name)`` is an expression of, and whose names those are; None where nothing says it."""
        ...


def row_steps(dims: tuple[int, ...], elem: Elem, rows: slice = slice(None)) -> Iterator[tuple[int, int]]:
    """``rows`` of a tensor of ``dims`` as ranges (start, stop) of about ``BLOCK`` bytes."""
    start, stop, _ = rows.indices(dims[0])
    step = max(BLOCK // max(math.prod(dims[1:]) * elem.bits // 8, 1), 1)
    for low in range(start, stop, step):
        yield low, min(low + step, stop)


class SafetensorsCheckpoint:
    """One ``.safetensors`` file, an ``.index.json`` of shards, or the directory that holds either.

    A shard that is missing, truncated or lies about its lengths is refused here, before a byte of it is used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        at = find_safetensors(path)
        self._stored = read_index(at, read_header) if at.suffix == ".json" else read_header(at)

    def names(self) -> Sequence[str]:
        return list(self._stored)

    def stored(self, name: str) -> Stored:
        if name not in self._stored:
            raise absent(self, name)
        return self._stored[name]

    def dims(self, name: str) -> tuple[int, ...]:
        return self.stored(name).dims

    def elem(self, name: str) -> Elem:
        return self.stored(name).elem

    def read(self, name: str) -> torch.Tensor:
        from irloom.ir.mapped import map_tensor

        at = self.stored(name)
        return map_tensor(at.path, at.offset, at.dims, at.elem.torch)

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        from irloom.ir.mapped import map_rows

        at = self.stored(name)
        for start, stop in row_steps(at.dims, at.elem, rows):
            yield map_rows(at, start, stop)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None


def find_safetensors(path: Path) -> Path:
    """The single file or the index that ``path`` is or holds."""
    if path.is_file():
        return path
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    single = sorted(path.glob("*.safetensors"))
    if len(single) == 1:
        return single[0]
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    what = f"{len(single)} .safetensors files and no index" if single else "no .safetensors file"
    raise CheckpointError(
        f"{path}: {what}",
        hint="a checkpoint is model.safetensors, or shards with model.safetensors.index.json",
    )


class RandomCheckpoint:
    """Seeded random weights: a value depends on the seed, the name and the dims only.

    Matrices are scaled by their last dim so that activations keep their size; vectors are norm weights near 1
    or biases near 0. For measuring and checking without a download.
    """

    def __init__(self, seed: int, dims: Mapping[str, tuple[int, ...]], elem: Elem = ELEMS["f32"]) -> None:
        self.path = Path(f"random-{seed}")
        self._seed, self._dims, self._elem = seed, dict(dims), elem

    def names(self) -> Sequence[str]:
        return sorted(self._dims, key=natural)

    def dims(self, name: str) -> tuple[int, ...]:
        if name not in self._dims:
            raise absent(self, name)
        return self._dims[name]

    def elem(self, name: str) -> Elem:
        self.dims(name)
        return self._elem

    def read(self, name: str) -> torch.Tensor:
        import torch

        dims = self.dims(name)
        digest = hashlib.blake2b(f"{self._seed}:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        dtype = self._elem.torch if self._elem.bits >= 16 else torch.float32
        values = torch.empty(dims, dtype=dtype).normal_(generator=generator)
        if len(dims) > 1:
            values.mul_(1 / math.sqrt(max(dims[-1], 1)))
        else:
            values.mul_(0.02).add_(1.0 if name.endswith("weight") else 0.0)
        return values.to(self._elem.torch)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None

    def stored(self, name: str) -> Stored | None:
        return None


def absent(checkpoint: Checkpoint, name: str) -> CheckpointError:
    """The error for a name that a checkpoint does not hold, with the nearest that it does."""
    import difflib

    near = difflib.get_close_matches(name, checkpoint.names(), n=1)
    return CheckpointError(
        f"{checkpoint.path}: no tensor `{name}`",
        hint=f"the nearest name in it is `{near[0]}`" if near else "",
    )
