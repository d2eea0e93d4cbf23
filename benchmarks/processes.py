"""Fresh processes: how long they take, how much memory, what they print. Standard library only."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"


class ProcessError(Exception):
    """A process failed; the message is the last thing it said."""


@dataclass(frozen=True)
class Run:
    """One process: seconds, what its last line of output says, and its peak memory in bytes.

    ``peak`` is what the system accounts to it at most, pages of mapped files included; ``own`` and
    ``mapped`` are the peaks of either kind, seen by looking 50 times a second (0 where there is no /proc).
    """

    seconds: float
    said: Any
    peak: int
    own: int
    mapped: int


def worker(script: str, *args: str, env: Mapping[str, str] | None = None) -> Run:
    """Run a script of ``workers/``, whose last line is JSON."""
    return run([sys.executable, str(WORKERS / script), *args], env)


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end; ``ProcessError`` if it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=log, env={**os.environ, **(env or {})})
        own = mapped = done = 0
        try:
            while not done:
                own, mapped = (max(p) for p in zip((own, mapped), resident(process.pid), strict=True))
                time.sleep(0.02)
                done, status, used = os.wait4(process.pid, os.WNOHANG)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said, words = (_lines(f) for f in (out, log))
        if process.returncode:
            raise ProcessError(f"status {process.returncode}: {(words or said or ['nothing was said'])[-1]}")
        return Run(seconds, _json(said), _bytes(used), own, mapped)


def resident(pid: int) -> tuple[int, int]:
    """Bytes of memory that a process holds now: its own, and pages of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    kib = {
        key: int(rest.split()[0])
        for key, _, rest in (x.partition(":") for x in lines)
        if key.startswith("Rss")
    }
    own = kib.get("RssAnon", 0) + kib.get("RssShmem", 0)  # memory from mmap without a file counts as shared
    return own << 10, kib.get("RssFile", 0) << 10


def wall(command: Sequence[str], repeats: int) -> float:
    """Median seconds of a command, from start to end, after one more that warms the disk's cache."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _bytes(used: resource.struct_rusage) -> int:
    return used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss << 10


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()


def _json(lines: list[str]) -> Any:
    try:
        return json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
