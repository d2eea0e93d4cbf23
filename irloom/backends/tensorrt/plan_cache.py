"""Plans kept on disk by what decides their bytes, each built once even where several builds want it at once.

Of a plan there are ``KEY.plan``, ``KEY.log`` and ``KEY.json``, its record, written last: a plan without one
was not finished. A plan is native code, so its bytes are compared with the record before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from irloom.backends.core import Report
from irloom.backends.locks import locked
from irloom.ir.errors import BuildError
from irloom.ir.files import write_whole

from .builder import Job
from .plan import Built, Recipe
from .workers import Told, build_all


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/irloom/tensorrt``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irloom" / "tensorrt"


def plans(
    recipes: Iterable[Recipe], report: Report, at_once: int, folder: Path | None = None
) -> dict[str, Built]:
    """The plan of every recipe, by its key: from the cache, or built, so many at once.

    What another process builds at this moment is waited for. ``BuildError`` where a build fails.
    """
    cache = Cache(folder or default_folder())
    wanted = {r.key: r for r in recipes}
    found: dict[str, Built] = {}
    while missing := [key for key in wanted if key not in found]:
        with ExitStack() as locks:
            mine = [key for key in missing if locks.enter_context(cache.tried(key))]
            kept = {key: built for key in mine if (built := cache.kept(key))}
            todo = [key for key in mine if key not in kept]
            found |= kept | cache.build([wanted[key] for key in todo], todo, at_once, report)
        if not mine:
            report("waiting for another build", len(found), len(wanted))
            cache.wait_for(missing[0])
    return found


class Cache:
    """A folder of plans."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(
                f"{folder}: {error.strerror}", hint="plans are kept there: set XDG_CACHE_HOME to a folder"
            ) from None

    def kept(self, key: str) -> Built | None:
        """The plan of this key, if it is there as its record says."""
        plan, record, log = (self.folder / f"{key}.{kind}" for kind in ("plan", "json", "log"))
        try:
            facts: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            with plan.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
            return Built(plan, log, facts["sha256"], facts["bytes"]) if whole and log.is_file() else None
        except (OSError, ValueError, KeyError):
            return None

    def build(
        self, recipes: Sequence[Recipe], keys: Sequence[str], at_once: int, report: Report
    ) -> dict[str, Built]:
        """Build what this process holds the locks of."""
        parts = [self.folder / f".{key}.partial" for key in keys]
        jobs = [
            Job(r, part, self.folder / f"{key}.log", self.timing(r))
            for r, part, key in zip(recipes, parts, keys, strict=True)
        ]
        try:
            facts = build_all(jobs, at_once, Told(report, len(jobs)))
            return {key: self.keep(key, job, f) for key, job, f in zip(keys, jobs, facts, strict=True)}
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    def keep(self, key: str, job: Job, facts: Mapping[str, float]) -> Built:
        """Put a plan that was built in its place, then its record."""
        plan = self.folder / f"{key}.plan"
        with job.plan.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = job.plan.stat().st_size
        job.plan.replace(plan)
        record = {"sha256": digest, "bytes": size, **facts}
        write_whole(self.folder / f"{key}.json", json.dumps(record))
        return Built(plan, job.log, digest, size, **facts)

    def timing(self, recipe: Recipe) -> Path | None:
        """Where timings of kernels are kept, for a library that times them: a file a GPU and version."""
        b = recipe.builder
        if b.gpu is None:
            return None
        name = hashlib.sha256(f"{b.library} {b.version} {b.gpu}".encode()).hexdigest()[:16]
        return self.folder / f"timing-{name}.cache"

    def tried(self, key: str) -> Any:
        """Hold the lock of a key, if nobody else does: the context is whether it was free."""
        return locked(self.folder / "locks" / key, wait=False)

    def wait_for(self, key: str) -> None:
        """Return once nobody holds the lock of a key."""
        with locked(self.folder / "locks" / key):
            pass
