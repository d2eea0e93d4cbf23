"""Every error a user can cause, in one family: what is wrong, then ``hint:`` and what to do about it."""

from __future__ import annotations

from typing import Self


class IrloomError(Exception):
    """Base of the errors that irloom raises on purpose.

    The message starts with the op or file and the operand, then gives both facts. ``hint`` is an action and
    is shown on a line of its own.

    >>> print(IRError("linear: dim `k` is 8, but operand `weight` makes it 9", hint="transpose it"))
    linear: dim `k` is 8, but operand `weight` makes it 9
    hint: transpose it
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
        self.places: list[str] = []

    def at(self, place: str) -> Self:
        """Append a line saying where; the innermost place comes first."""
        self.places.append(place)
        return self

    def __str__(self) -> str:
        hint = [f"hint: {self.hint}"] if self.hint else []
        return "\n".join([self.message, *hint, *self.places])


class IRError(IrloomError):
    """A malformed program: types that do not fit, an unknown op, a broken invariant."""


class TraceError(IrloomError):
    """A model that cannot be traced: names the op, the module path and the source line."""


class PipelineError(IrloomError):
    """A pipeline that cannot run: an unknown pass or option, an impossible order."""


class CheckpointError(IrloomError):
    """A checkpoint that is missing, truncated, or does not hold what the model needs."""


class KernelError(IrloomError):
    """A kernel that cannot be called for its op, does not compile, or does not compute what its body does."""


class BuildError(IrloomError):
    """An engine that cannot be built: the target's builder refuses, or memory or disk run out."""


class EngineMismatch(IrloomError):
    """An engine directory that was edited, is incomplete, or was built for another machine."""


class OutOfMemory(IrloomError):
    """A step that a device had no memory for: nothing of it counts, a smaller one may run."""


class RequestError(IrloomError):
    """A request that cannot be served: sampling parameters out of range, a prompt that does not fit."""
