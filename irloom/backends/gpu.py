"""The GPU that engines are built for and run on, as torch sees it."""

from __future__ import annotations

from dataclasses import dataclass


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
