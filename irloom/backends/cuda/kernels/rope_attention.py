"""From projections to what is attended to: ``rope_append`` and ``paged_attention`` as one, for few sequences.

Where every sequence brings one token, the program that has the last keys of one also makes the new key,
keeps it and attends to it; each makes its queries itself. That costs less than a kernel of its own.
"""

from __future__ import annotations

from torch import Tensor

from irloom.ir.seqs import PagedCache

from ..alike import alike
from ..step import Step
from ..work import Workspace
from .attention import paged_attention, run_decode
from .attention_call import Call, Fresh
from .attention_tiles import chosen, decode_tiles
from .rope import frequencies, rope_append
from .tiles import power_of_two

FEW = 32
"""Sequences up to which one kernel does it all."""


def rope_attention(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: PagedCache,
    step: Step,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    inv_freq: Tensor | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    *,
    eps: float | None = None,
    theta: float = 10000.0,
    rotary: int | None = None,
    interleaved: bool = False,
    turn: float = 1.0,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    work: Workspace,
) -> None:
    """``out`` of ``paged_attention`` over the cache that ``rope_append`` renews; ``turn`` is its ``scale``.

    No kernel writes ``q_norm``, ``k_norm`` and ``inv_freq``.
    """
    dim = q.shape[2]
    if alike() or not step.decode or step.seqs > FEW or dim != power_of_two(dim):
        turned = work.take(q.shape, q.dtype)
        given = {"eps": eps, "theta": theta, "rotary": rotary, "interleaved": interleaved, "scale": turn}
        rope_append(turned, q, k, v, cache, step, q_norm, k_norm, inv_freq, **given)
        attrs = {"scale": scale, "window": window, "softcap": softcap, "chunk": chunk}
        paged_attention(out, turned, cache, step, sinks, slopes, **attrs, work=work)
        return
    call = Call(out, q, cache, step, sinks, slopes, scale, window, softcap, chunk, None)
    pairs = (dim if rotary is None else rotary) // 2
    freq = frequencies(theta, 2 * pairs, q.device) if inv_freq is None else inv_freq
    fresh = Fresh(k, v, q_norm, k_norm, freq, eps, pairs, interleaved, turn)
    run_decode(call, chosen("decode", call, decode_tiles(call), run_decode), work, fresh)
