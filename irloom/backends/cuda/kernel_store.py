"""Compiled kernels travel with an engine: Triton's cache as the build left it, and the choices by the clock.

Opening an engine puts them where Triton and the tuner look, so nothing is compiled or timed at the start.
They are native code: the manifest's hashes are checked before. A second build of a program finds the list of
its kernels, and runs none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path

from irloom.backends.artifact import EngineReader, EngineWriter

FOLDER = "kernels/"
CHOICES = "tuning.json"
GROUP = "__grp__"
"""Begins the name of a file that lists the others of a kernel, by their full paths."""
STAGES = (".source", ".ttir", ".ttgir", ".llir", ".ptx")
"""Files of what a kernel was on its way: it runs without them."""


@cache
def kernels_used() -> set[str]:
    """The names that Triton's cache has for the kernels that this process has compiled or found there.

    Counted from the first call on.
    """
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    used: set[str] = set()

    class Counting(FileCacheManager):
        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override, dump)
            used.add(key)

    knobs.cache.manager_class = Counting
    return used


def triton_cache() -> Path:
    """Where Triton keeps what it has compiled."""
    from triton import knobs

    return Path(knobs.cache.dir)


def list_of(settled: Path, facts: str) -> Path:
    """Where a program lists its kernels: beside ``settled``, the choices for this GPU and these sources."""
    return settled.with_suffix("") / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"


def listed(file: Path, compiled: Path) -> set[str] | None:
    """The names in a list; None where there is none, or one of them is no longer in Triton's cache."""
    try:
        names = set(map(str, json.loads(file.read_text())))
    except (OSError, ValueError):
        return None
    return names if all((compiled / name).is_dir() for name in names) else None


def keep_list(file: Path, names: Collection[str]) -> None:
    """Keep a list, where the folder can be written."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(sorted(names)))
        part.replace(file)


def store(out: EngineWriter, compiled: Path, used: Collection[str], choices: dict[str, str]) -> None:
    """Put the kernels ``used`` of Triton's cache ``compiled``, and what was chosen, into an engine."""
    folders = [compiled / name for name in sorted(used)]
    for file in sorted(p for f in folders if f.is_dir() for p in f.iterdir() if p.is_file()):
        name = FOLDER + file.relative_to(compiled).as_posix()
        if file.name.startswith(GROUP):
            out.write_json(name, sorted(json.loads(file.read_text())["child_paths"]))
        elif file.name != "lock" and file.suffix not in STAGES:
            shutil.copyfile(file, out.file(name))
    out.write_json(CHOICES, choices)


def choices_of(engine: EngineReader) -> dict[str, str]:
    """What the build found fastest."""
    return engine.read_json(CHOICES) if CHOICES in engine.manifest.parts else {}


def seed(engine: EngineReader, cache: Path) -> int:
    """Put an engine's kernels into Triton's ``cache``, but for those that it has; how many files that were.

    A file is there whole or not at all, and a group after what it lists.
    """
    parts = [Path(name) for name in engine.manifest.parts if name.startswith(FOLDER)]
    new = 0
    for part in sorted(parts, key=lambda p: p.name.startswith(GROUP)):
        to = cache / part.relative_to(FOLDER)
        if to.exists():
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(f".{uuid.uuid4()}")
        if part.name.startswith(GROUP):
            paths = {name: str(to.parent / name) for name in engine.read_json(part.as_posix())}
            beside.write_text(json.dumps({"child_paths": paths}))
        else:
            shutil.copyfile(engine.file(part.as_posix()), beside)
        beside.replace(to)
        new += 1
    return new
