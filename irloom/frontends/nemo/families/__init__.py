"""Families: which of the library's architectures a Megatron model is."""

from irloom.frontends.nemo.families.core import Family, family_of

__all__ = ["Family", "family_of"]
