"""Translations from the library's ops to IR ops, one file per kind of op."""

from irloom.frontends.hf.aten import elementwise, experts, model, shape
from irloom.frontends.hf.aten.core import TRANSLATORS, Mask, Stored

__all__ = ["TRANSLATORS", "Mask", "Stored", "elementwise", "experts", "model", "shape"]
