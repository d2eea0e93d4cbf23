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


def lacking(least: tuple[int, int]) -> str | None:
    """What is missing for kernels of compute capability ``least``: None where there is all, else what torch
    says of it: no CUDA, no GPU, a driver that is too old, or a GPU that is.
    """
    import torch

    if torch.version.cuda is None:
        return f"an NVIDIA GPU and torch for CUDA: torch {torch.__version__} is for the CPU alone"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
            said = "torch sees none"
        except (RuntimeError, AssertionError) as error:
            said = str(error).partition("\n")[0].rstrip(". ")
        return f"an NVIDIA GPU with a driver for CUDA {torch.version.cuda}: {said}"
    if torch.cuda.get_device_capability() < least:
        return f"a GPU of compute capability {least[0]}.{least[1]} or newer: this is {gpu()}"
    return None
