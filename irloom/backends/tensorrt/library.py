"""The TensorRT that is installed: ``tensorrt``, or ``tensorrt_rtx`` for consumer GPUs. One API, two names."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from irloom.ir.errors import IrloomError

OLDEST = {"tensorrt": (11, 0), "tensorrt_rtx": (1, 5)}
INSTALL = "pip install tensorrt-cu13 (11 or later), or for a consumer GPU tensorrt-rtx-cu13 (1.5 or later)"


class LibraryMissing(IrloomError):
    """TensorRT is not installed, does not load, or is too old."""


@dataclass(frozen=True)
class Kernels:
    """What lowering may count on beside what every TensorRT has: attention that takes packed queries, and a
    layer of gated experts.
    """

    packed: bool = False
    experts: bool = False


PLAIN = Kernels()
"""What every TensorRT has."""


@dataclass(frozen=True)
class Library:
    """A loaded library: ``trt`` is its Python API.

    ``packed`` says whether its attention takes packed queries over a padded cache. TensorRT for RTX has no
    kernel for that and does not decompose it, so rows are padded to one width a slot there.
    """

    name: str
    version: str
    trt: Any

    @property
    def packed(self) -> bool:
        """Whether attention takes packed queries."""
        return self.name == "tensorrt"

    def kernels(self, compute: str | None) -> Kernels:
        """What it has on a GPU of this compute capability.

        https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-moe.html
        """
        return Kernels(self.packed, self.name == "tensorrt" and compute in ("10.0", "10.3", "11.0"))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@cache
def load() -> Library:
    """The library of this machine; ``LibraryMissing`` says what is in the way and what to install."""
    tried: list[str] = []
    for name, module, wheel in _PLACES:
        if importlib.util.find_spec(module) is None:
            tried.append(f"{module} is not installed")
            continue
        release = _preload(wheel) if wheel else None
        if wheel and release is None:
            tried.append(f"{module} is installed, but the libraries of {wheel} are not")
            continue
        try:
            trt = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as e:
            tried.append(f"{module} does not load: {e}")
            continue
        version = str(getattr(trt, "__version__", "0.0"))
        if release not in (None, version):  # calls go by number: another release has others there
            tried.append(f"{module} is {version}, and the libraries of {wheel} are {release}")
            continue
        if _release(version) >= OLDEST[name]:
            return Library(name, version, trt)
        tried.append(f"{name} {version} is older than {'.'.join(map(str, OLDEST[name]))}")
    raise LibraryMissing(f"TensorRT: {'; '.join(tried)}", hint=INSTALL)


_PLACES = (
    ("tensorrt", "tensorrt", ""),
    ("tensorrt_rtx", "tensorrt_rtx", ""),
    ("tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"),
)


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def _preload(package: str) -> str | None:
    """Load the libraries that lie in another package's directory, where bindings come without them.

    Their release, or None where there are none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder, release = Path(spec.submodule_search_locations[0]), None
    for name in ("libcudart", "libtensorrt_rtx", "libtensorrt_onnxparser_rtx"):  # each needs those before it
        for file in sorted(folder.glob(f"{name}.so*")):
            loaded = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
            if name == "libtensorrt_rtx":
                parts = ("Major", "Minor", "Patch", "Build")
                release = ".".join(str(getattr(loaded, f"getInferLib{part}Version")()) for part in parts)
    return release
