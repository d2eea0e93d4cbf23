"""Compile C++ with the system compiler into a content-addressed cache: the same source, once a machine.

A library's name is the hash of everything that decides its bytes: sources and headers, flags, the compiler's
version, and the CPU's features (the flags say ``-march=native``). Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from irloom.backends.machine import Compiler, compiler

SOURCES = Path(__file__).parent / "kernels"
# No contraction and no fast math: the same expression gives the same bits wherever it is inlined.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)


class CompileError(RuntimeError):
    """The system compiler refused our source; the message is its own."""


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/irloom/kernels``, by default under ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "irloom" / "kernels"


@cache
def cpu_features() -> str:
    """What ``-march=native`` depends on, as text."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    first = {line.split(":")[0].strip(): line for line in reversed(lines) if ":" in line}
    kept = [
        first[key]
        for key in ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
        if key in first
    ]
    return "\n".join([platform.machine(), *kept])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def _key(sources: dict[str, str], cxx: Compiler, flags: tuple[str, ...]) -> str:
    headers = {path.name: path.read_text() for path in sorted(SOURCES.glob("*.h"))}
    parts = [str(cxx.path), cxx.version, cpu_features(), *flags]
    parts += [text for name in sorted(sources | headers) for text in (name, (sources | headers)[name])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def build(sources: dict[str, str], march: str = "native", folder: Path | None = None) -> Path | None:
    """Path of a shared library of ``sources`` (file name -> C++ text), compiled if the cache has none.

    None when this machine has no compiler; ``CompileError`` when it has one that fails.
    """
    cxx = compiler()
    if cxx is None:
        return None
    flags = (*FLAGS, f"-march={march}")
    folder = folder or default_cache()
    target = folder / f"{_key(sources, cxx, flags)}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:

        def compile_one(name: str) -> str:
            source = Path(work) / name
            source.write_text(sources[name])
            _run([str(cxx.path), *flags, f"-I{SOURCES}", "-c", str(source), "-o", f"{source}.o"])
            return f"{source}.o"

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, sorted(sources, key=lambda name: -len(sources[name]))))
        whole = Path(work) / "whole.so"
        _run([str(cxx.path), "-shared", "-pthread", "-Wl,-Bsymbolic", *objects, "-o", str(whole)])
        whole.replace(target)
    return target


def kernel_sources() -> dict[str, str]:
    """The package's own kernels, file name -> text."""
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cpp"))}
