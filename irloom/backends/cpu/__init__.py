"""The CPU target: own kernels, packed weights, a readable program."""

from irloom.backends.cpu.extern import kernel, lowers

__all__ = ["kernel", "lowers"]
