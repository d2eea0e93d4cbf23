"""A step that is queued, and its tokens: on their way to the host while the device goes on with the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irloom.runtime.core import Chosen

from .rare import Reports


@dataclass(frozen=True)
class Sent:
    """Tokens i32 [S] that the device tells; they are there once ``done`` has happened (None: they are)."""

    tokens: torch.Tensor
    done: torch.cuda.Event | None


@dataclass(frozen=True)
class Submitted:
    """See ``runtime.core.Pending``."""

    sent: Sent
    reports: Reports | None

    def take(self) -> Chosen:
        """Wait for the step's tokens."""
        if self.sent.done is not None:
            self.sent.done.synchronize()
        return Chosen(self.sent.tokens.numpy().copy(), self.reports.take() if self.reports else {})
