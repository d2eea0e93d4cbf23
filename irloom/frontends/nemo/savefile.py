"""Files of ``torch.save``: where each tensor's bytes lie, without reading them.

Such a file is a zip of uncompressed entries: ``data.pkl`` describes the objects, ``data/0``, ``data/1``, ...
are the bytes of storages. The file may itself lie in an archive or be a chunk of a larger file.
"""

from __future__ import annotations

import struct
import zipfile
from typing import Any

from irloom.frontends.nemo.archive import Extent, Window
from irloom.frontends.nemo.unpickle import LIMIT, load_pickle
from irloom.ir.errors import CheckpointError

_LOCAL = struct.Struct("<4s22xHH")  # a local header: signature, then at its end the lengths of name and extra
_AGAIN = "save the checkpoint again with torch.save, or fetch the file again"


def read_saved(extent: Extent) -> Any:
    """What was saved: containers as they are, tensors as ``Stored``, other objects ``Inert``."""
    path = extent.path
    try:
        with Window(extent) as window, zipfile.ZipFile(window) as saved:
            entries = {info.filename: _content(extent, info, window) for info in saved.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path}: holds no readable torch.save file: {error}",
            hint="irloom reads what torch >= 1.6 saves, a zip; the file may also be incomplete",
        ) from None
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: {len(pickles)} entries `data.pkl` in a torch.save file", hint=_AGAIN)
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None and order.read(16).strip() != b"little":
        raise CheckpointError(
            f"{path}: saved on a big-endian machine, which irloom does not read", hint=_AGAIN
        )

    def storage(key: str) -> tuple[int, int]:
        found = entries.get(f"{folder}data/{key}")
        if found is None:
            raise CheckpointError(f"{path}: no bytes for storage {key!r} of a torch.save file", hint=_AGAIN)
        return found.offset, found.nbytes

    return load_pickle(entries[pickles[0]].read(LIMIT), path, storage)


def _content(extent: Extent, info: zipfile.ZipInfo, window: Window) -> Extent:
    """The bytes of an uncompressed entry; its local header says how long itself is."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise CheckpointError(
            f"{extent.path}: `{info.filename}` of a torch.save file is compressed or encrypted",
            hint="torch.save compresses nothing: do not trust this file",
        )
    window.seek(info.header_offset)
    signature, name, extra = _LOCAL.unpack(window.read(_LOCAL.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no entry at byte {info.header_offset}")
    return extent.part(info.header_offset + _LOCAL.size + name + extra, info.file_size)
