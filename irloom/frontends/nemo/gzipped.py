"""Archives that were compressed as a whole: unpacked once, with a bound, into the cache."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
import zlib
from pathlib import Path

from irloom.frontends.store import cache_dir
from irloom.ir.errors import CheckpointError

RATIO = 32
"""How much more an archive may unpack to than it has bytes: weights do not reach 2, a bomb has 1000."""
_FREE = 64 << 20  # bytes that any archive may unpack to, whatever the ratio
_STEP = 1 << 20


def unpacked(path: Path) -> Path:
    """The plain tar of a gzipped one, made beside its place in the cache and renamed when it is whole."""
    stat = path.stat()
    key = hashlib.blake2b(
        f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=12
    ).hexdigest()
    place = cache_dir() / "archives" / f"{key}.tar"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".unpack-", delete=False) as file:
            made = Path(file.name)
        try:
            _unpack(path, made, max(_FREE, RATIO * stat.st_size))
            made.replace(place)
        finally:
            made.unlink(missing_ok=True)
    return place


def _unpack(path: Path, made: Path, bound: int) -> None:
    free, written = shutil.disk_usage(made.parent).free, 0
    try:
        with gzip.open(path) as packed, made.open("wb") as out:
            while block := packed.read(_STEP):
                written += len(block)
                if written > bound:
                    raise CheckpointError(
                        f"{path}: unpacks to more than {bound} bytes from {path.stat().st_size}",
                        hint="this is no model archive",
                    )
                if written > free:
                    raise CheckpointError(
                        f"{path}: unpacks to more than the {free} bytes that are free in {made.parent}",
                        hint="unpack it where there is room, and give the directory",
                    )
                out.write(block)
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path}: does not unpack: {error}", hint="fetch the archive again") from None
