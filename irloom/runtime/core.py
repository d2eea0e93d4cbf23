"""The interface between the runtime and an engine: one batch in, one sampled token per finished chunk out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from irloom.ir.plan import Pool
from irloom.runtime.request import SamplingParams

Ints = NDArray[np.int32]
Draws = NDArray[np.void]
"""Entries of ``DRAW``."""

DRAW = np.dtype(
    [
        ("seed", np.uint64),
        ("position", np.int32),  # how many tokens the request has generated
        ("asked", np.int32),  # 1 where a token is to be chosen, else 0
        ("temperature", np.float32),  # 0: greedy, and nothing below counts
        ("floor", np.float32),  # the logarithm of min-p, -inf without
        ("top_p", np.float32),
        ("top_k", np.int32),  # 0: all
    ]
)
"""How one token is chosen, in the eight words that go to a device with every step (``Batch.draws``)."""

BROKEN = -1
"""Stands for the token of a sequence whose logits were NaN, or had no finite score."""


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the sampler needs to choose one token.

    Randomness depends on ``seed`` and ``position`` (how many tokens the request has generated) and on nothing
    else, so a request draws the same token alone and in any batch. ``banned`` may not be chosen now
    (stop tokens before ``min_tokens``). ``prompt`` and ``counts`` (generated token -> how often) are filled
    for requests with penalties.
    """

    params: SamplingParams
    seed: int
    position: int
    banned: tuple[int, ...] = ()
    prompt: Ints | None = None
    counts: Mapping[int, int] = field(default_factory=dict[int, int])


def draw_of(row: SamplingRow | None) -> tuple[float, ...]:
    """The entry of ``DRAW`` for one choice.

    >>> draw_of(SamplingRow(SamplingParams(temperature=0.5, top_k=8), seed=-1, position=3))
    (18446744073709551615, 3, 1, 0.5, -inf, 1.0, 8)
    """
    if row is None:
        return (0,) * len(DRAW.names or ())
    params = row.params
    floor = math.log(params.min_p) if params.min_p else -math.inf
    temperature = 0 if params.greedy else params.temperature
    return row.seed % 2**64, row.position, 1, temperature, floor, params.top_p, params.top_k


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step, packed: ``S`` sequences back to back, ``T`` tokens. All arrays are i32.

    Sequence ``s`` has ``tokens[starts[s]:starts[s + 1]]`` at ``positions`` of the same range: one token when
    it decodes, more when it prefills. After the step its cache holds ``context[s]`` tokens, these included.
    ``tables[i][s, j]`` is the page of pool ``i`` for its tokens ``j * page`` to ``(j + 1) * page - 1``, or -1
    where there is none (behind the window, or past the context). Of a pool of states (``Pool.cut``) a step
    over positions ``a`` to ``b - 1`` starts from the slot ``tables[i][s, (a - 1) // page]``, from zeros where
    ``a`` is 0, and leaves its state in ``tables[i][s, (b - 1) // page]``, maybe the same one.
    ``sampling[s]`` is None when the chunk does not reach the end of the known tokens: nothing is sampled
    then.

    For an ``Overlapped`` engine, ``late`` [T] says which tokens the host does not know yet: token ``t`` is
    the one sampled for sequence ``late[t]`` of the batch submitted before, or ``tokens[t]`` where
    ``late[t]`` is -1 (and everywhere if ``late`` is empty). ``draws`` [S] has an entry of ``DRAW`` for each
    sequence. That is all there is to know but of the sequences ``rare``: for those ``sampling`` has bias,
    penalties, bans or log-probabilities.
    """

    tokens: Ints
    positions: Ints
    starts: Ints
    context: Ints
    tables: tuple[Ints, ...]
    sampling: Sequence[SamplingRow | None]
    late: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    draws: Draws = field(default_factory=lambda: np.zeros(0, DRAW))
    rare: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with ``params.logprobs = n`` its log-probability and those of the ``n`` best tokens.

    The token is ``BROKEN`` where the logits are: that request ends, the others of the step do not.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Engine(Protocol):
    """Runs steps. The runtime owns its pages: the engine reads and writes exactly the pages in ``tables``.

    ``max_tokens`` bounds ``T``, ``max_seqs`` bounds ``S``, ``max_context`` the tokens of one sequence.
    """

    @property
    def vocab(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def max_seqs(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def pools(self) -> tuple[Pool, ...]: ...

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """Store the keys and values of ``batch``, and sample where it asks; one entry per sequence.

        ``OutOfMemory`` where the device has no memory for a step as large as this.
        """
        ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a step sampled: ``tokens`` i32 [S], ``BROKEN`` where logits are, any where none was asked for.

    ``reported`` has the sequences that asked for log-probabilities, by their number in the batch.
    """

    tokens: Ints
    reported: Mapping[int, Sampled] = field(default_factory=dict[int, Sampled])


class Pending(Protocol):
    """A step that was submitted."""

    def take(self) -> Chosen:
        """Wait for the step; raises what went wrong in it."""
        ...


@runtime_checkable
class Overlapped(Engine, Protocol):
    """An engine that takes the next batch while it still runs the last one.

    It runs batches in the order they are submitted, and keeps the tokens that the last one sampled:
    ``submit`` puts them in where ``Batch.late`` says so (for ``BROKEN`` ones any token of the vocabulary).
    At most one batch is submitted before the one in front of it is taken.
    """

    def submit(self, batch: Batch) -> Pending:
        """Queue ``batch``; its arrays are not changed until it is taken. ``OutOfMemory`` as ``step``."""
        ...
