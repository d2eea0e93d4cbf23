"""Sampled tokens on their way back to the host, while the device goes on with the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from irloom.runtime.core import Chosen

from .rare import Reports

KEPT = 3
"""Steps whose tokens may be on their way, or not yet taken."""


@dataclass(frozen=True)
class Sent:
    """Tokens that are being copied; they are there once ``done`` has happened (None: they are there)."""

    tokens: torch.Tensor
    done: torch.cuda.Event | None


class Answers:
    """Memory of the host for the tokens of a few steps of up to ``most`` sequences."""

    def __init__(self, most: int, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.hosts = deque(torch.zeros(most, dtype=torch.int32, pin_memory=self.cuda) for _ in range(KEPT))

    def send(self, tokens: torch.Tensor) -> Sent:
        """Queue the copy of i32 ``tokens``; its memory is used again ``KEPT`` steps later."""
        self.hosts.rotate(-1)
        there = self.hosts[-1][: len(tokens)]
        there.copy_(tokens, non_blocking=True)
        if not self.cuda:
            return Sent(there, None)
        done = torch.cuda.Event()
        done.record()
        return Sent(there, done)


@dataclass(frozen=True)
class Submitted:
    """A step that is queued: see ``runtime.core.Pending``."""

    sent: Sent
    reports: Reports | None

    def take(self) -> Chosen:
        """Wait for the step's tokens."""
        if self.sent.done is not None:
            self.sent.done.synchronize()
        return Chosen(self.sent.tokens.numpy().copy(), self.reports.take() if self.reports else {})
