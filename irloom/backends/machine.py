"""What this machine is: its CPU, memory, compiler and read bandwidth.

Engines are fitted to it, ``irloom doctor`` shows it, and a share of bandwidth is a share of what is measured.
As the device ``cpu`` it stands beside the cards of ``ir/device.py``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from irloom.ir.device import Device, with_figures
from irloom.ir.device import device as known

_X86 = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")
_ARM = ("asimd", "i8mm", "bf16")
FEATURES = (*_X86, *_ARM)
"""The instruction sets that a kernel may ask for, named as the Linux kernel does."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its path and the first line it says about itself."""

    path: Path
    version: str


def cpu_name() -> str:
    """The processor's name, as the kernel gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Those of ``FEATURES`` that this processor has."""
    flags = (_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split()
    return tuple(f for f in FEATURES if f in flags)


def cores() -> int:
    """Cores that this process may use, which a container or ``taskset`` may have made fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory this process may use: the machine's, or less where its control group says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    granted = limit.read_text().strip() if limit.is_file() else "max"
    return total if granted == "max" else min(total, int(granted))


@cache
def compiler() -> Compiler | None:
    """The C++ compiler: ``$CXX``, or the first of c++, g++, clang++ that answers."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return Compiler(Path(path), asked.stdout.partition("\n")[0])
    return None


@cache
def read_bandwidth(nbytes: int = 256 << 20, repeats: int = 8) -> float:
    """Bytes per second that all of torch's threads together read from memory: the best of ``repeats`` sums.

    ``nbytes`` must be well past the last-level cache. A sum moves each byte once and reaches what a plain C
    loop of vector loads does.
    """
    x = torch.ones(nbytes // 4)
    best = min(_seconds(x.sum) for _ in range(repeats))
    return x.nbytes / best


def device(text: str) -> Device:
    """A device by name: a known one (``h200``), or ``cpu``, this machine; see ``ir.device.device``."""
    name, _, figures = text.strip().partition("(")
    return with_figures(cpu(), figures.rstrip(") ")) if name.strip().lower() == "cpu" else known(text)


@cache
def cpu() -> Device:
    """What this machine is as a device: read bandwidth and products of matrices, measured."""
    return Device("cpu", read_bandwidth(), _products(), memory(), f"measured on {cpu_name()}")


def _products(n: int = 1024, repeats: int = 5) -> dict[str, float]:
    """FLOP/s of a product of ``n`` by ``n`` matrices in f32, the element that all others are computed in."""
    x = torch.full((n, n), 0.5)
    best = min(_seconds(lambda: x @ x) for _ in range(repeats))
    return {"f32": 2 * n**3 / best}


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of ``/proc/cpuinfo``; empty where there is none."""
    file = Path("/proc/cpuinfo")
    first = file.read_text().partition("\n\n")[0] if file.is_file() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
