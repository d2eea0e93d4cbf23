"""Which keys a query sees, and with what bias: read from the values of a mask at a few lengths."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from irloom.ir.errors import TraceError

LOG = logging.getLogger("irloom.trace")

HIDDEN = -2000.0
"""A score this far below that of the token itself has no weight. Models write -1e4, the least float, -inf."""


@dataclass(frozen=True)
class Lengths:
    """One setting of the two symbols of a graph: tokens of the step, and tokens cached before it."""

    tokens: int
    past: int


NEAR = (Lengths(5, 3), Lengths(7, 12))
HINT = "causal, sliding, chunked and ALiBi attention can be traced"

Look = Callable[[Lengths], Tensor]
"""What is added to the scores of T queries and P + T keys, f32 [heads or 1, T, P + T]; ``TraceError`` where
that is more than the model has places for."""


@dataclass(frozen=True)
class Seen:
    """What attention sees: the last ``window`` tokens, those of its own ``chunk``; ``slopes`` per head."""

    window: int | None = None
    chunk: int | None = None
    slopes: tuple[float, ...] | None = None

    def first(self, position: int) -> int:
        """The first key that the query at ``position`` sees."""
        near = 0 if self.window is None else max(0, position - self.window + 1)
        return near if self.chunk is None else max(near, position // self.chunk * self.chunk)


class TooLarge(TraceError):
    """Values that take too much memory to look at."""


def classify(look: Look, cached: bool, hints: Iterable[int] = ()) -> Seen:
    """What a mask means, from its values: near the start, then at lengths that cross each of ``hints``.

    ``cached`` says whether keys come before the step's own; without a cache there are only these. Raises
    ``TraceError`` where the values are those of no known kind.
    """
    samples = {at: look(at) for at in (_lengths(n, cached) for n in NEAR)}
    slopes = _slopes(samples)
    for tokens, past in _far(hints):
        at = _lengths(Lengths(tokens, past), cached)
        try:
            samples.setdefault(at, look(at))
        except TooLarge:
            LOG.warning("a mask is too large to look at from position %d on", tokens + past)
        except (TraceError, RuntimeError, IndexError):  # a table ends
            continue
    firsts = {at: _first_keys(at, bias, slopes) for at, bias in samples.items()}
    for _ in range(2):
        seen = _kind(firsts, slopes)
        limit = seen.window or seen.chunk
        if limit is None:
            return seen
        for edge in (limit - 2, limit, 2 * limit - 2):  # where one kind differs from another
            at = _lengths(Lengths(4, max(edge, 0)), cached)
            firsts[at] = _first_keys(at, look(at), slopes)
    return _kind(firsts, slopes)


def _lengths(at: Lengths, cached: bool) -> Lengths:
    return at if cached else Lengths(at.tokens + at.past, 0)


def _far(hints: Iterable[int]) -> list[tuple[int, int]]:
    """Lengths past every number that the model mentions, the largest first; some may be too large."""
    sizes = sorted({abs(h) for h in hints if 2 < abs(h) < 1 << 20}, reverse=True)[:12]
    return [(2, past) for h in sizes for past in (2 * h + 3, h + 1, h - 2)] + [(3, 61)]


def _slopes(samples: dict[Lengths, Tensor]) -> tuple[float, ...] | None:
    """ALiBi's slope of each head, from the bias between the last token and the one before it."""
    bias = next(iter(samples.values())).double()
    step = bias[:, -1, -1] - bias[:, -1, -2]
    step = torch.where(step.abs() < -HIDDEN, step, torch.zeros_like(step))  # hidden: the window is one token
    return tuple(step.tolist()) if step.abs().max() > 1e-9 else None


def _first_keys(at: Lengths, bias: Tensor, slopes: tuple[float, ...] | None) -> list[int]:
    """The first key that each query sees; all up to the query's own must be seen, and no other."""
    own = at.past + torch.arange(at.tokens)
    keys = torch.arange(bias.shape[-1])
    rest = bias.double() - bias.double().gather(2, own[None, :, None].expand(len(bias), -1, 1))
    if slopes is not None:
        rest = rest - torch.tensor(slopes).double()[:, None, None] * (keys - own[:, None])
    hidden = rest < HIDDEN
    if (hidden != hidden[:1]).any():
        raise TraceError("heads of one attention see different tokens", hint=HINT)
    if rest[~hidden].abs().max() > 1e-3 * (1 + max(map(abs, slopes or (0.0,))) * bias.shape[-1]):
        raise TraceError("attention adds a bias to its scores that is not linear in distance", hint=HINT)
    seen = ~hidden[0]
    if (seen & (keys > own[:, None])).any():
        raise TraceError("attention sees later tokens", hint="only decoders, which look back, can be traced")
    firsts = [int(row.int().argmax()) for row in seen]
    if any(int(row.sum()) != i - j + 1 for row, i, j in zip(seen, own.tolist(), firsts, strict=True)):
        raise TraceError("attention skips some of the tokens that it looks back to", hint=HINT)
    return firsts


def _kind(firsts: dict[Lengths, list[int]], slopes: tuple[float, ...] | None) -> Seen:
    """The kind of mask that gives these first keys."""
    rows = [(at.past + t, j) for at, js in firsts.items() for t, j in enumerate(js)]
    late = [(i, j) for i, j in rows if j > 0]
    kinds = [Seen(slopes=slopes)]
    if late:
        kinds = [
            Seen(window=min(i - j + 1 for i, j in late), slopes=slopes),
            Seen(chunk=gcd(*(j for _, j in late)), slopes=slopes),
        ]
    for kind in kinds:
        if all(kind.first(i) == j for i, j in rows):
            return kind
    raise TraceError("attention looks back in a way that is neither a window nor a chunk", hint=HINT)


def dense_mask(queries: int, keys: int, kind: str, size: int) -> Tensor:
    """A mask as the library would spell it: f32 [1, 1, queries, keys], 0 where seen, else the least float."""
    at = keys - queries + torch.arange(queries)[:, None]
    key = torch.arange(keys)[None]
    seen = torch.ones(queries, keys, dtype=torch.bool) if kind == "full" else key <= at
    if kind == "sliding":
        seen = seen & (key > at - size)
    if kind == "chunked":
        seen = seen & (key >= at // size * size)
    return torch.zeros(queries, keys).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
