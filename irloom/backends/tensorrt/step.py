"""The arrays of a step at fixed places on the device: they get there in one copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from irloom.backends.slots import SlotStep
from irloom.ir.plan import Pool
from irloom.ir.seqs import Seqs
from irloom.runtime.core import Ints

from .program import STEP, Program

ALIGN = 64
"""Entries of i32 from one array to the next: 256 bytes."""


class StepArrays:
    """Room for i32 arrays of up to ``most[name]`` entries each, in one block.

    Those that are named first are nearest the front; what is copied ends behind the last that a step has.
    """

    def __init__(self, most: Mapping[str, int], device: torch.device) -> None:
        self.at: dict[str, int] = {}
        end = 0
        for name, n in most.items():
            self.at[name] = end
            end += -(-n // ALIGN) * ALIGN
        self.host = torch.zeros(end, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.there = self.host if device.type == "cpu" else torch.zeros_like(self.host, device=device)
        self.copied: torch.cuda.Event | None = None

    def load(self, arrays: Mapping[str, Ints]) -> dict[str, torch.Tensor]:
        """Copy the arrays of a step; where they are on the device, until the next call."""
        if self.copied is not None:
            self.copied.synchronize()  # before the host's memory is written again
        places = {name: slice(self.at[name], self.at[name] + x.size) for name, x in arrays.items()}
        host = self.host.numpy()
        for name, x in arrays.items():
            host[places[name]] = x.ravel()
        if self.there is not self.host:
            end = max(place.stop for place in places.values())
            self.there[:end].copy_(self.host[:end], non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()
        return {name: self.there[places[name]].view(x.shape) for name, x in arrays.items()}


class Told:
    """Which arrays a program needs of a step: those that its networks read, and ``seqs`` for its bodies."""

    def __init__(self, program: Program, pools: Sequence[Pool]) -> None:
        read = {name for s in program.segments for name in s.step} | {"ids"}
        self.bodies = bool(program.outside)
        self.names = [name for name in STEP if name in read or (name == "positions" and self.bodies)]
        self.pools = tuple(pools)

    def most(self, tokens: int, seqs: int, context: int, padded: int) -> dict[str, int]:
        """Entries of each array of the largest step, queries ``padded`` to so many; the long ones last."""
        rows = max(tokens, seqs)  # a filled step has a row for every slot
        most = {"ids": rows, "positions": rows, "unpad": rows, "last": seqs, "starts": seqs + 1}
        most |= {"past": seqs, "lengths": seqs, "seqs.starts": seqs + 1, "seqs.context": seqs}
        most |= {f"table {p.name}": seqs * -(-context // p.page) for p in self.pools}
        return {**most, "pad": padded}

    def arrays(self, step: SlotStep) -> dict[str, Ints]:
        """The arrays of a step."""
        every = {
            "ids": step.tokens, "positions": step.positions, "last": step.last, "starts": step.starts,
            "past": step.past, "lengths": step.lengths, "pad": step.pad, "unpad": step.unpad,
        }  # fmt: skip
        told = {name: every[name] for name in self.names}
        if self.bodies:
            told["seqs.starts"] = np.concatenate([[0], step.last + 1]).astype(np.int32)
            told["seqs.context"] = step.context
            told |= {f"table {p.name}": t for p, t in zip(self.pools, step.tables, strict=True)}
        return told

    def seqs(self, given: Mapping[str, torch.Tensor]) -> Seqs | None:
        """What bodies see of a step that is loaded."""
        if not self.bodies:
            return None
        tables = {p.name: given[f"table {p.name}"] for p in self.pools}
        return Seqs(given["positions"], given["seqs.starts"], given["seqs.context"], tables)
