"""Headers of safetensors files: which tensors a file holds, and where their bytes are.

Format: 8 bytes with the header's length, the header as JSON, then the tensors' bytes.
https://huggingface.co/docs/safetensors. Every length is checked before anything is read through it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.errors import CheckpointError

Entry = TypeVar("Entry")

_ELEMS = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2",
    "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8", "U8": "u8", "BOOL": "bool",
    "F8_E8M0": "u8",
}  # fmt: skip
"""``F8_E8M0``, a power of two, is read as the byte that holds its exponent."""
_MAX_HEADER = 100_000_000
_DAMAGED = "the file is damaged; fetch it again, or write it with the safetensors library"
_INCOMPLETE = "the download may be incomplete; fetch the file again"


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it: ``offset`` counts bytes from the start of the file."""

    path: Path
    offset: int
    dims: tuple[int, ...]
    elem: Elem

    @property
    def nbytes(self) -> int:
        return math.prod(self.dims) * self.elem.bits // 8


def read_header(path: Path) -> dict[str, Stored]:
    """What ``path`` holds, in the order of its bytes; ``CheckpointError`` for a file that is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path}: its header claims {length} bytes, but the file has {size}", hint=_INCOMPLETE
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="is it a file that you may read?") from None
    try:
        header: Any = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not JSON: {error}", hint=_INCOMPLETE) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object", hint=_INCOMPLETE)
    entries = cast("dict[str, Any]", header)
    stored = [(n, _entry(path, n, e, 8 + length, size)) for n, e in entries.items() if n != "__metadata__"]
    ordered = sorted(stored, key=lambda item: (item[1].offset, item[1].nbytes))
    for (name, first), (other, second) in pairwise(ordered):
        if first.offset + first.nbytes > second.offset:
            raise CheckpointError(f"{path}: `{name}` and `{other}` share bytes of the file", hint=_DAMAGED)
    return dict(ordered)


def file_header(tensors: Mapping[str, tuple[Elem, tuple[int, ...]]]) -> bytes:
    """The start of a file of these tensors, which lie behind it in this order, the first at a multiple of 64.

    >>> header = file_header({"w": (ELEMS["bf16"], (2, 3))})
    >>> len(header) % 64, json.loads(header[8:])
    (0, {'w': {'dtype': 'BF16', 'shape': [2, 3], 'data_offsets': [0, 12]}})
    """
    names = {elem: name for name, elem in reversed(_ELEMS.items())}
    entries: dict[str, Any] = {}
    at = 0
    for name, (elem, dims) in tensors.items():
        size = math.prod(dims) * elem.bits // 8
        entries[name] = {"dtype": names[elem.name], "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names differ: of two entries of a name, readers may take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _entry(path: Path, name: str, entry: Any, start: int, size: int) -> Stored:
    try:
        dtype, dims = str(entry["dtype"]), tuple(int(d) for d in entry["shape"])
        begin, end = (int(x) for x in entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: `{name}` has no dtype, shape and data_offsets in the header", hint=_DAMAGED
        ) from None
    if dtype not in _ELEMS:
        raise CheckpointError(
            f"{path}: `{name}` is stored as {dtype}", hint=f"irloom reads {', '.join(_ELEMS)}"
        )
    stored = Stored(path, start + begin, dims, ELEMS[_ELEMS[dtype]])
    if min((begin, *dims)) < 0 or end - begin != stored.nbytes:
        raise CheckpointError(
            f"{path}: `{name}` is {dtype}{list(dims)}, {stored.nbytes} bytes, but offsets say {end - begin}",
            hint=_DAMAGED,
        )
    if start + end > size:
        raise CheckpointError(
            f"{path}: `{name}` ends at byte {start + end}, but the file has {size}", hint=_INCOMPLETE
        )
    return stored


def read_index(path: Path, read: Callable[[Path], dict[str, Entry]]) -> dict[str, Entry]:
    """What the shards that an ``.index.json`` names hold, in order of bytes; ``read`` opens one shard."""
    try:
        index: Any = json.loads(path.read_bytes())
        shards = {str(name): str(shard) for name, shard in index["weight_map"].items()}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path}: no `weight_map` from tensor names to files", hint="fetch the index again"
        ) from None
    found: dict[str, Entry] = {}
    for shard in sorted(set(shards.values())):
        named = [name for name, at in shards.items() if at == shard]
        if Path(shard).name != shard or shard in {"", ".", ".."}:
            raise CheckpointError(
                f"{path}: `{named[0]}` is in {shard!r}, which is not a file beside the index",
                hint="nothing outside of the directory is read; put the shards beside the index",
            )
        if not (path.parent / shard).is_file():
            raise CheckpointError(
                f"{path}: `{named[0]}` is in {shard}, which is missing",
                hint=f"fetch it ({len(named)} of {len(shards)} tensors are in it)",
            )
        header = read(path.parent / shard)
        if absent := [name for name in named if name not in header]:
            raise CheckpointError(
                f"{path}: `{absent[0]}` should be in {shard}, which does not hold it",
                hint="the index is that of another checkpoint; fetch both again",
            )
        found |= {name: header[name] for name in header if name in shards}
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts ``layers.2`` before ``layers.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
