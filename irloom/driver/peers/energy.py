"""Joules that the GPU has used, as its driver counts them: NVML's total energy, asked through ``ctypes``.

Standard library only. https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache

LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Meter:
    """The driver's library and its handle of one GPU."""

    library: ctypes.CDLL
    handle: ctypes.c_void_p

    def joules(self) -> float | None:
        """Since the driver was loaded; None for a GPU that does not count."""
        total = ctypes.c_ulonglong()
        failed = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(total))
        return None if failed else total.value / 1e3


def joules() -> float | None:
    """What the GPU of this process has used so far, or None where nobody says."""
    found = meter(LIBRARY, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return found and found.joules()


@cache
def meter(library: str, visible: str) -> Meter | None:
    """The first GPU of ``visible``, as ``CUDA_VISIBLE_DEVICES`` has it: numbers or UUIDs, empty for all."""
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return None
        handle, first = ctypes.c_void_p(), visible.split(",", maxsplit=1)[0].strip() or "0"
        if first.isdigit():
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(first)), ctypes.byref(handle))
        else:
            failed = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
    except (OSError, AttributeError):  # no driver, or one that is older than these functions
        return None
    return None if failed else Meter(nvml, handle)


def driver(library: str = LIBRARY) -> str | None:
    """The version of NVIDIA's driver, or None without one."""
    text = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL(library)
        failed = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode()
