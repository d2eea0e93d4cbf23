"""The files of a checkpoint: a directory, or a tar archive that is read where it lies.

Nothing is extracted: a member of an archive is a run of bytes of it, and tensors are mapped from there. Only
archives that were compressed as a whole are unpacked, once, into the cache. A name that leads out of the
archive, a link, a name that is there twice and lengths past the end are refused before anything is read.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from irloom.ir.errors import CheckpointError

SMALL = 64 << 20  # bytes of a file that is read whole: configs, vocabularies
_MEMBERS = 1_000_000
_INCOMPLETE = "the download may be incomplete; fetch the archive again"
_UNSAFE = "do not trust this archive; pack the model's directory again with plain `tar cf`"


@dataclass(frozen=True)
class Extent:
    """A run of bytes in a file: a whole file, a member of an archive, or a part of either."""

    path: Path
    offset: int
    nbytes: int

    def part(self, offset: int, nbytes: int) -> Extent:
        """``nbytes`` bytes from ``offset`` on; ``CheckpointError`` where they leave the extent."""
        if min(offset, nbytes) < 0 or offset + nbytes > self.nbytes:
            raise CheckpointError(
                f"{self.path}: {nbytes} bytes wanted at {offset} of a part that has {self.nbytes}",
                hint=_INCOMPLETE,
            )
        return Extent(self.path, self.offset + offset, nbytes)

    def read(self, limit: int = SMALL) -> bytes:
        """All of its bytes, which must not be more than ``limit``."""
        if self.nbytes > limit:
            raise CheckpointError(
                f"{self.path}: {self.nbytes} bytes where at most {limit} are expected", hint=_UNSAFE
            )
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.nbytes)
        if len(data) != self.nbytes:
            raise CheckpointError(
                f"{self.path}: the file ends at {self.offset + len(data)}", hint=_INCOMPLETE
            )
        return data


class Window(io.RawIOBase):
    """An extent as a readable file of its own, for readers that seek."""

    def __init__(self, extent: Extent) -> None:
        super().__init__()
        self._file, self._extent, self._at = extent.path.open("rb"), extent, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._extent.nbytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._extent.nbytes - self._at))
        self._file.seek(self._extent.offset + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Files:
    """The files below a checkpoint's root by their relative names, ``weights/.metadata``.

    Where everything lies in one folder of the archive, that folder is the root.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = dict(_walk(path)) if path.is_dir() else _members(_plain(path))
        self._extents = found if path.is_dir() else _unwrapped(found)

    def __contains__(self, name: str) -> bool:
        return name in self._extents

    def names(self, folder: str = "") -> list[str]:
        """Names of the files below ``folder``, relative to it."""
        start = f"{folder}/" if folder else ""
        return sorted(name[len(start) :] for name in self._extents if name.startswith(start))

    def extent(self, name: str) -> Extent:
        if name not in self._extents:
            raise CheckpointError(f"{self.path}: `{name}` is missing", hint=_INCOMPLETE)
        return self._extents[name]

    def text(self, name: str) -> str:
        try:
            return self.extent(name).read().decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path}: `{name}` is not UTF-8 text", hint=_INCOMPLETE) from None


def is_archive(path: Path) -> bool:
    """Whether a file begins as a tar archive does, or as a compressed one by its name."""
    with path.open("rb") as file:
        head = file.read(512)
    named = path.name.endswith((".nemo", ".tar", ".tar.gz", ".tgz"))
    return head[257:262] == b"ustar" or (named and head[:2] == b"\x1f\x8b") or path.suffix == ".nemo"


def inside(name: str, archive: Path) -> str:
    """A relative name in its plain form; ``CheckpointError`` for one that leads elsewhere."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{archive}: the name {name!r} leads out of the archive", hint=_UNSAFE)
    return str(pure)


def _walk(root: Path) -> Iterator[tuple[str, Extent]]:
    """Every file below ``root``. Linked files are followed, as in a hub cache; linked folders are not."""
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder) / name
            if file.is_file():
                yield file.relative_to(root).as_posix(), Extent(file, 0, file.stat().st_size)


def _plain(path: Path) -> Path:
    """The archive itself, or the unpacked one of a compressed archive."""
    from irloom.frontends.nemo.gzipped import unpacked

    with path.open("rb") as file:
        head = file.read(6)
    if head[:2] == b"\x1f\x8b":
        return unpacked(path)
    others = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
    if kind := next((k for start, k in others.items() if head.startswith(start)), None):
        raise CheckpointError(
            f"{path}: a {kind} file, and a .nemo archive is a plain or gzipped tar", hint="unpack it first"
        )
    return path


def _members(path: Path) -> dict[str, Extent]:
    size, found = path.stat().st_size, {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = inside(member.name, path)
                if member.isdir():
                    continue
                _check(path, member, size)
                if name in found:
                    raise CheckpointError(f"{path}: `{name}` is there twice", hint=_UNSAFE)
                if len(found) == _MEMBERS:
                    raise CheckpointError(f"{path}: more than {_MEMBERS} members", hint=_UNSAFE)
                found[name] = Extent(path, member.offset_data, member.size)
            _ended(path, tar.offset, size)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise CheckpointError(f"{path}: not a readable tar archive: {error}", hint=_INCOMPLETE) from None
    return found


def _check(path: Path, member: tarfile.TarInfo, size: int) -> None:
    kinds = {"a link": member.issym() or member.islnk(), "a device": member.isdev()}
    kinds["a sparse file"] = member.issparse()
    if kind := next((k for k, yes in kinds.items() if yes), None):
        raise CheckpointError(f"{path}: `{member.name}` is {kind}", hint=_UNSAFE)
    if not member.isreg():
        raise CheckpointError(f"{path}: `{member.name}` is no regular file", hint=_UNSAFE)
    if member.size < 0 or member.offset_data + member.size > size:
        raise CheckpointError(
            f"{path}: `{member.name}` ends at byte {member.offset_data + member.size}, but the archive has"
            f" {size}",
            hint=_INCOMPLETE,
        )


def _ended(path: Path, offset: int, size: int) -> None:
    """``tarfile`` takes a damaged header for the end: after a real end there are only zeros, or nothing."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(min(512, max(0, size - offset)))
    if block.strip(b"\0"):
        raise CheckpointError(f"{path}: the member at byte {offset} has a damaged header", hint=_INCOMPLETE)


def _unwrapped(found: dict[str, Extent]) -> dict[str, Extent]:
    tops = {name.partition("/")[0] for name in found}
    if len(tops) != 1 or any("/" not in name for name in found):
        return found
    (top,) = tops
    if top in {"context", "weights", "model_weights"} or top.startswith("iter_"):
        return found
    return {name[len(top) + 1 :]: extent for name, extent in found.items()}
