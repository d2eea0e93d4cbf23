"""From projections to attention: heads normed, rotated and appended to their caches, in one kernel.

A program takes some heads of one token: of queries, or of keys and values. Cosine and sine are made where
they are used, which costs less than reading a table of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as cached
from typing import Any

import torch
from torch import Tensor

from irloom.backends.cuda.step import Step
from irloom.backends.cuda.tuning import choose
from irloom.ir.ops.attention import default_frequencies
from irloom.ir.seqs import PagedCache

from .mode import options, triton
from .rope_kernels import move_heads
from .tiles import Tile, amount, fresh, power_of_two, strides


def rope(
    out: Tensor,
    x: Tensor,
    positions: Tensor,
    inv_freq: Tensor | None = None,
    *,
    theta: float = 10000.0,
    rotary: int | None = None,
    interleaved: bool = False,
    scale: float = 1.0,
) -> None:
    """The op ``rope``."""
    turn = Turn.of(x, inv_freq, theta, rotary, interleaved, scale)
    _tuned("rope", x, out, positions=positions, turn=turn, q=x)


def rope_append(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cache: PagedCache,
    step: Step,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    inv_freq: Tensor | None = None,
    *,
    eps: float | None = None,
    theta: float = 10000.0,
    rotary: int | None = None,
    interleaved: bool = False,
    scale: float = 1.0,
) -> None:
    """The op ``rope_append``: rotated queries in ``out``, keys and values of real tokens in ``cache``.

    What a cache of fp8 cannot hold becomes its largest. No kernel writes ``q_norm`` and ``k_norm``.
    """
    turn = Turn.of(q, inv_freq, theta, rotary, interleaved, scale)
    given = {"cache": cache, "step": step, "q_norm": q_norm, "k_norm": k_norm, "eps": eps}
    _tuned("rope_append", q, out, positions=step.positions, turn=turn, q=q, k=k, v=v, **given)


def kv_append(cache: PagedCache, k: Tensor, v: Tensor | None, step: Step) -> None:
    """The op ``kv_append``: keys and values of real tokens in ``cache``, cast as ``rope_append`` does."""
    _tuned("kv_append", k, None, positions=step.positions, turn=Turn(), k=k, v=v, cache=cache, step=step)


@dataclass(frozen=True)
class Turn:
    """How heads are rotated: ``half`` pairs of features by ``freq`` a token; not at all where that is 0."""

    freq: Tensor | None = None
    half: int = 0
    interleaved: bool = False
    scale: float = 1.0

    @staticmethod
    def of(
        x: Tensor, freq: Tensor | None, theta: float, rotary: int | None, interleaved: bool, scale: float
    ) -> Turn:
        """As the op's attributes say it for heads like those of ``x``."""
        n = x.shape[-1] if rotary is None else rotary
        freq = frequencies(theta, n, x.device) if freq is None else freq
        return Turn(freq, n // 2, interleaved, scale)


@cached
def frequencies(theta: float, rotary: int, device: torch.device) -> Tensor:
    """What an absent ``inv_freq`` stands for; made once, before any graph is captured."""
    return default_frequencies(theta, rotary).to(device)


def tiles(heads: int, features: int, tokens: int) -> Sequence[Tile]:
    """Heads of a program to choose from: few where there are few tokens, so that all have their own."""
    most, few = power_of_two(heads), amount(tokens * heads * features) == "few"
    rows = dict.fromkeys(min(most, n) for n in ((4, 2, 8, 16) if few else (32, 16, 8)))
    return [Tile(n, max(1, min(8, n * power_of_two(features) // 512))) for n in rows]


def _tuned(name: str, x: Tensor, out: Tensor | None, *, turn: Turn, **given: Any) -> None:
    """Launch the best tile for ``x``; while it is looked for, each writes the same into caches."""
    cache, k = given.get("cache"), given.get("k")
    key = (
        str(x.dtype), *x.shape[1:], turn.half, turn.interleaved, amount(x.numel()), given.get("eps") is None,
        k is not None and k.shape[1], cache and str(cache.k.dtype),
    )  # fmt: skip
    run = lambda tile, out: _launch(tile, out, turn=turn, **given)  # noqa: E731
    tile = choose(name, key, tiles(x.shape[1], x.shape[2], len(x)), lambda tile: run(tile, fresh(out)))
    run(tile, out)


def _launch(
    tile: Tile,
    out: Tensor | None,
    *,
    positions: Tensor,
    turn: Turn,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache: PagedCache | None = None,
    step: Step | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float | None = None,
) -> None:
    assert (q is None) == (out is None)
    assert all(t is None or t.stride(-1) == 1 for t in (out, q, k, v)), "features lie side by side"
    keys = values = table = owner = None
    if cache is not None and step is not None:
        keys, values, table, owner = cache.k, cache.v, step.tables[cache.pool], step.owner
    q_heads, k_heads = (0 if t is None else t.shape[1] for t in (q, k))
    like = k if q is None else q
    assert like is not None
    parts = triton.cdiv(q_heads, tile.rows), triton.cdiv(k_heads, tile.rows)
    move_heads[len(positions), sum(parts)](
        out, q, k, v, keys, values if v is not None else None, table, owner, positions, q_norm, k_norm,
        turn.freq, *strides(out), *strides(q), *strides(k), *strides(v), *_places(keys), *_places(values),
        *((0, 0) if table is None else (table.stride(0), table.shape[1])), eps or 0.0, turn.scale,
        Q_HEADS=q_heads, K_HEADS=k_heads, Q_PARTS=parts[0], D=like.shape[2],
        V=0 if v is None else v.shape[2], HALF=turn.half, INTERLEAVED=turn.interleaved,
        NORM=eps is not None, PAGE=1 if cache is None else cache.page,
        STRIDE=1 if cache is None else cache.stride, H=tile.rows, **options(num_warps=tile.warps),
    )  # fmt: skip


def _places(cache: Tensor | None) -> tuple[int, int, int]:
    """From page to page, entry to entry, head to head."""
    if cache is None:
        return 0, 0, 0
    assert cache.shape[3] == 0 or cache.stride(3) == 1, "features of a cache lie side by side"
    return cache.stride(0), cache.stride(1), cache.stride(2)
