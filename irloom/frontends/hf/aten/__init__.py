"""Translations from the library's ops to IR ops, one file per kind of op."""

from irloom.frontends.hf.aten import complex, constants, elementwise, experts, model, order, shape, write
from irloom.frontends.hf.aten.core import TRANSLATORS, Mask, Stored

__all__ = [
    "TRANSLATORS", "Mask", "Stored", "complex", "constants", "elementwise", "experts", "model", "order",
    "shape", "write",
]  # fmt: skip
