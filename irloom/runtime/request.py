"""A request: what the user asked for, and how far it has come."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from irloom.ir.errors import RequestError
from irloom.runtime.pages import PageTable, Prefix


class Phase(Enum):
    """Where a request is. A preempted request is ``WAITING`` again, with the tokens it has generated."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a request ended. ``ERROR``: the engine failed in a step the request shared."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. A field out of its range is a ``RequestError`` naming the field.

    ``temperature`` below 1e-5 is greedy. ``top_k`` 0 keeps all. Presence and frequency penalties count
    generated tokens; the repetition penalty counts the prompt too. ``max_tokens=None`` generates until the
    engine's pages are full. ``logprobs=n`` reports the chosen token's log-probability and the ``n`` best, of
    the model's own distribution (before bias, penalties and temperature). ``stop`` strings and
    ``stop_token_ids`` are left out of the text unless ``include_stop``; until ``min_tokens`` nothing but
    ``max_tokens`` stops the request.

    >>> SamplingParams(top_p=0.0)
    Traceback (most recent call last):
    irloom.ir.errors.RequestError: top_p: 0.0 is not in (0, 1]
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None
    logprobs: int | None = None
    stop: Sequence[str] = ()  # one string will do
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _items("stop", stop))
        object.__setattr__(self, "stop_token_ids", _items("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(_pairs("logit_bias", self.logit_bias)))
        _number("temperature", self.temperature, 0, 2)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 10, above=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, 20)
        _whole("min_tokens", self.min_tokens, 0)
        _whole("top_k", self.top_k, 0)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0)
            _number("logit_bias", bias, -100, 100)
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0)
        for text in self.stop:
            _text("stop", text)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens: {self.min_tokens} is more than max_tokens, {self.max_tokens}")

    @property
    def greedy(self) -> bool:
        """The best token is taken, nothing is drawn."""
        return self.temperature < 1e-5

    @property
    def penalized(self) -> bool:
        """Scores depend on the tokens seen so far."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


# users do not read annotations: what arrives is checked as an ``object``


def _number(name: str, value: object, low: float, high: float, above: bool = False) -> None:
    number = float(value) if isinstance(value, SupportsFloat) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (above and number == low):
        raise RequestError(f"{name}: {value!r} is not in {'(' if above else '['}{low}, {high}]")


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise RequestError(f"{name}: {value!r} is not a whole number")
    number = operator.index(value)
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise RequestError(f"{name}: {number} is not {allowed}")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name}: {value!r} is not a non-empty string")


def _items(name: str, value: Iterable[object]) -> tuple[object, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise RequestError(f"{name}: {value!r} is not a list") from None


def _pairs(name: str, value: Mapping[int, float]) -> Iterable[tuple[int, float]]:
    try:
        return value.items()
    except AttributeError:
        raise RequestError(f"{name}: {value!r} is not a mapping from token to bias") from None


@dataclass(eq=False, slots=True)
class Request:
    """One sequence on its way through the scheduler.

    The first ``known`` of ``tokens`` (i32) are real, and it ends with ``end`` at the latest; while it runs
    both lie in ``Sequences``, and ``known`` is what it was when somebody looked. ``stop_ids`` are all tokens
    that end it. ``seen`` (the prompt's distinct tokens) and ``counts`` (generated token -> how often) are
    kept for penalties only. ``cached`` prompt tokens came from the prefix cache. ``rank`` orders requests,
    lowest first. ``followed``: each token is looked at when it comes, by a reader or for what ends it. It is
    ``awaiting`` a token while it waits, if it was preempted from a step that samples one. Written by: the
    loop (``counts``, ``finish``), ``Sequences`` (``tokens``, ``known``), the scheduler (the rest).
    """

    id: str
    tokens: NDArray[np.int32]
    prompt_length: int
    end: int
    params: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    prefix: Prefix
    followed: bool = True
    priority: int = 0
    rank: tuple[int, int] = (0, 0)
    phase: Phase = Phase.WAITING
    known: int = 0
    cached: int = 0
    preemptions: int = 0
    awaiting: bool = False
    table: PageTable | None = None
    counts: dict[int, int] = field(default_factory=dict[int, int])
    seen: NDArray[np.int32] | None = None
    finish: FinishReason | None = None

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return self.known - self.prompt_length

    def hold(self, tokens: NDArray[np.int32], known: int) -> None:
        """Its tokens lie elsewhere now."""
        self.tokens = self.prefix.tokens = tokens
        self.known = known

    def receive(self, token: int) -> None:
        """Take the token it was ``awaiting``."""
        self.awaiting = False
        self.hold(np.append(self.tokens, np.int32(token)), self.known + 1)
