"""Files of text that are read or written whole."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import IRError, IrloomError


def read_text(path: Path) -> str:
    """The text of a file; ``IRError`` where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise IRError(f"{path.name}: byte {error.start} is not UTF-8", hint="write it again").at(
            f"  --> {path}:{line}"
        ) from None


def write_whole(path: Path, data: str | bytes) -> None:
    """Write beside the place, then rename: the file is whole or it is not there.

    ``IrloomError`` where it cannot be written.
    """
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        part.write_bytes(data if isinstance(data, bytes) else data.encode())
        part.replace(path)
    except OSError as error:
        raise IrloomError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
