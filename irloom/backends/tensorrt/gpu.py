"""The GPU that plans are built for and run on, as torch sees it."""

from __future__ import annotations

from dataclasses import dataclass

PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that a plan of TensorRT for RTX is for, where none is named:
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html."""
RTX = ("7.5", *PORTABLE, "12.1")
"""Compute capabilities that TensorRT for RTX runs on."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and compute capability."""

    name: str
    compute: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute})"


def gpu() -> Gpu | None:
    """The GPU that torch uses here; None where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"{major}.{minor}")
