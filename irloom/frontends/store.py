"""What tracing found, kept on disk, so that a model is traced once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import irloom
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.ir.show import show


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/irloom``, by default ``~/.cache/irloom``: all that irloom keeps outside of
    engines.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irloom"


_EXTENSIONS: set[str] = set()  # written by takes_part


def takes_part(fn: Callable[..., object]) -> None:
    """Remember the file of a function that takes part in tracing: a trace made by another state of it is not
    used again. Files of irloom itself need no mention.
    """
    file = fn.__code__.co_filename
    if not file.startswith(str(Path(irloom.__file__).parent)):
        _EXTENSIONS.add(file)


def extensions() -> str:
    """Which code from outside of irloom takes part in tracing, as one hash."""
    return digest(sorted(map(Path, _EXTENSIONS)))


def stored_trace(config: str, options: object, trace: Callable[[], Module]) -> Module:
    """The trace kept for this config and these options, or the one that ``trace`` makes and this keeps.

    One that does not parse is made again.
    """
    facts = [config, repr(options)]
    with suppress(IRError):
        if (text := kept("traces", facts)) is not None:
            return parse(text)
    module = trace()
    keep("traces", facts, show(module))
    return module


def kept(room: str, facts: Sequence[str]) -> str | None:
    """The text that was kept in ``room`` for ``facts``, or None.

    Its key also holds the versions of transformers and torch, irloom's own tracing code and that of plugins.
    """
    try:
        return _place(room, facts).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def keep(room: str, facts: Sequence[str], text: str) -> None:
    """Keep ``text``: written beside its place and renamed. A read-only or full disk costs only that."""
    place = _place(room, facts)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=place.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(place)


def _place(room: str, facts: Sequence[str]) -> Path:
    every = [*facts, *_versions(), extensions()]
    key = hashlib.blake2b(json.dumps(every).encode(), digest_size=16).hexdigest()
    return cache_dir() / room / f"{key}.irloom"


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    root = Path(irloom.__file__).parent
    code = digest(sorted([*(root / "ir").rglob("*.py"), *(root / "frontends").rglob("*.py")]))
    return version("transformers"), version("torch"), irloom.__version__, code


def digest(files: Iterable[Path]) -> str:
    """One hash of these files' bytes, in their order; a file that cannot be read counts by its name."""
    code = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            code.update(file.read_bytes())
        except OSError:
            code.update(str(file).encode())
    return code.hexdigest()
