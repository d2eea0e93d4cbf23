"""Hugging Face models: ``trace_hf`` runs a library model once without weights and imports what it did."""

from irloom.frontends.hf.trace import trace_hf

__all__ = ["trace_hf"]
