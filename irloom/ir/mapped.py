"""Bytes of a file as a tensor, one mapping per tensor.

Pages that were read count as resident memory until their mapping goes. A checkpoint mapped once, as a whole,
therefore grows to its full size while it is read; here the mapping goes with the tensor.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored


def map_bytes(path: Path, offset: int, nbytes: int) -> torch.Tensor:
    """``nbytes`` bytes of ``path`` from ``offset``, u8[nbytes]; unmapped when the tensor is freed.

    Writing to the tensor changes a private copy, never the file.
    """
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    lead = offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        if (size := file.seek(0, 2)) < offset + nbytes:
            raise CheckpointError(
                f"{path}: {nbytes} bytes wanted at {offset}, but the file ends at {size}",
                hint="the file changed since it was opened, or its download is incomplete",
            )
        view = mmap.mmap(file.fileno(), lead + nbytes, access=mmap.ACCESS_COPY, offset=offset - lead)
    view.madvise(mmap.MADV_SEQUENTIAL)
    return torch.frombuffer(view, dtype=torch.uint8, count=nbytes, offset=lead)


def map_tensor(path: Path, offset: int, dims: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The tensor of ``dims`` and ``dtype`` stored at ``offset``; copied only where its alignment needs it."""
    count = 1
    for dim in dims:
        count *= dim
    data = map_bytes(path, offset, count * dtype.itemsize)
    if offset % dtype.itemsize:
        data = data.clone()
    return data.view(dtype).reshape(dims)


def map_rows(at: Stored, start: int, stop: int) -> torch.Tensor:
    """Entries ``start`` to ``stop`` along the first dim of a stored tensor."""
    row = at.nbytes // max(at.dims[0], 1)
    return map_tensor(at.path, at.offset + start * row, (stop - start, *at.dims[1:]), at.elem.torch)
