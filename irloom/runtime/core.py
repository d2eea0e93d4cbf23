"""The interface between the runtime and an engine: one batch in, one sampled token per finished chunk out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from irloom.ir.plan import Pool
from irloom.runtime.request import SamplingParams

Ints = NDArray[np.int32]


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
    """

    tokens: Ints
    positions: Ints
    starts: Ints
    context: Ints
    tables: tuple[Ints, ...]
    sampling: tuple[SamplingRow | None, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with ``params.logprobs = n`` its log-probability and those of the ``n`` best tokens."""

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
        """Store the keys and values of ``batch``, and sample where it asks; one entry per sequence."""
        ...
