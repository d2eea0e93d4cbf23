"""Take queries and keys from their projections to attention as one kernel: norm, rotate, append.

A layer's attention begins with four to six small ops on rows that were just computed: a norm of each head
(in models with QK norm), the rotation of queries, that of keys, and the append of keys and values to the
cache. As one op, rotated keys are in the cache and nowhere else, and a packed row of queries, keys and values
is read once. Layers without a rotation only append, which ``kv_append`` says already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irloom.ir.graph import Module, Value
from irloom.ir.ops import kv_append, paged_attention, rms_norm, rope, rope_append

from .core import Changes, NoMatch, Pass
from .rewrite import Rewrite, Site, apply


class RotateAndAppend(Rewrite):
    """Keys that are rotated and appended, and queries that are rotated alike and attend to them."""

    def match(
        self, q: Value, k: Value, v: Value | None, cache: Value, at: Value, seqs: Value, freq: Value | None,
        sinks: Value | None, slopes: Value | None, index: Value | None, bias: Value | None, *,
        theta: float, rotary: int | None, interleaved: bool, turns: float,
        scale: float, window: int | None, softcap: float | None, chunk: int | None, block: int,
        values: int | None,
    ) -> tuple[Value, Value]:  # fmt: skip
        how: Any = {"theta": theta, "rotary": rotary, "interleaved": interleaved, "scale": turns}
        held = kv_append(cache, rope(k, at, freq, **how), v, seqs)
        return paged_attention(
            rope(q, at, freq, **how), held, seqs, sinks, slopes, index, bias, scale=scale,
            window=window, softcap=softcap, chunk=chunk, block=block, values=values,
        ), held  # fmt: skip

    def replace(
        self, q: Value, k: Value, v: Value | None, cache: Value, at: Value, seqs: Value, freq: Value | None,
        theta: float, rotary: int | None, interleaved: bool, turns: float, site: Site,
    ) -> tuple[Value, Value]:  # fmt: skip
        turned, held = rope_append(
            q, k, v, cache, at, seqs, None, None, freq,
            theta=theta, rotary=rotary, interleaved=interleaved, scale=turns,
        )  # fmt: skip
        attends = site.root
        others: list[Any] = attends.args[2:]
        return paged_attention(site.named("q_turned", turned), held, *others, **attends.attrs), held


class NormHeads(Rewrite):
    """Heads of queries and keys that are normed first (QK norm), with weights or without."""

    def match(
        self, q: Value, k: Value, v: Value | None, cache: Value, at: Value, seqs: Value,
        wq: Value | None, wk: Value | None, freq: Value | None, *,
        eps: float, theta: float, rotary: int | None, interleaved: bool, scale: float,
    ) -> tuple[Value, Value]:  # fmt: skip
        q, k = rms_norm(q, wq, eps=eps), rms_norm(k, wk, eps=eps)
        how: Any = {"theta": theta, "rotary": rotary, "interleaved": interleaved, "scale": scale}
        return rope_append(q, k, v, cache, at, seqs, None, None, freq, **how)

    def replace(
        self, q: Value, k: Value, v: Value | None, cache: Value, at: Value, seqs: Value,
        wq: Value | None, wk: Value | None, freq: Value | None,
        eps: float, theta: float, rotary: int | None, interleaved: bool, scale: float,
    ) -> tuple[Value, Value]:  # fmt: skip
        how: Any = {"theta": theta, "rotary": rotary, "interleaved": interleaved, "scale": scale}
        return rope_append(q, k, v, cache, at, seqs, wq, wk, freq, eps=eps, **how)


class NormFirst(Rewrite):
    """A norm without a weight after the rotation (Llama 4): rotating keeps lengths, so it may come before."""

    def match(
        self, x: Value, at: Value, freq: Value | None, *,
        eps: float, theta: float, rotary: int | None, interleaved: bool, scale: float,
    ) -> Value:  # fmt: skip
        how: Any = {"theta": theta, "rotary": rotary, "interleaved": interleaved, "scale": scale}
        return rms_norm(rope(x, at, freq, **how), eps=eps)

    def where(self, scale: float) -> None:
        if scale != 1.0:
            raise NoMatch(f"the rotation multiplies by {scale}, so it does not keep lengths")

    def replace(
        self, x: Value, at: Value, freq: Value | None,
        eps: float, theta: float, rotary: int | None, interleaved: bool,
    ) -> Value:  # fmt: skip
        return rope(rms_norm(x, eps=eps), at, freq, theta=theta, rotary=rotary, interleaved=interleaved)


@dataclass(frozen=True)
class FuseRopeAppend(Pass):
    """No options."""

    after = ("raise", "kv-cache", "fuse-qkv", "absorb-mla")
    before = ("plan-memory",)

    def run(self, m: Module) -> Changes:
        return apply(m, [NormFirst(), RotateAndAppend(), NormHeads()])
