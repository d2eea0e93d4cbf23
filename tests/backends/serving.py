"""Tiny models that engines of any target serve beside the interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import torch

from irloom.backends.core import Limits
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import import_tiny
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.zoo.models import Specimen

CONTEXT = 96
LIMITS = Limits(max_tokens=13, max_seqs=5, max_context=CONTEXT)
FEW = replace(LIMITS, max_seqs=2)
SPANS = f"context={CONTEXT}, max_seqs=5, max_tokens=13"
"""What ``kv-plan`` is given for these limits."""


@dataclass(frozen=True)
class TinyModel:
    """A tiny model of an architecture, as the library has it and as it is traced."""

    specimen: Specimen
    traced: Module

    @classmethod
    @cache
    def of(cls, name: str) -> Self:
        """The model of a name; traced once a session."""
        specimen = Specimen.of(name)
        return cls(specimen, import_tiny(specimen.config, specimen.model)[0])

    @property
    def checkpoint(self) -> LiveCheckpoint:
        """Its weights."""
        return LiveCheckpoint(self.specimen.model)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of a whole sequence [T, vocab], by the interpreter on the program as it is traced."""
        with torch.inference_mode():
            return Interpreter(self.traced, self.checkpoint)(tokens.int(), Seqs.of([len(tokens)]))[0]
