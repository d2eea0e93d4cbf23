"""Numbers that the programs of one kernel hand to one of them, while all run.

Each is a word that says by itself that it is there: nobody counts who has written, and nobody reads again
what is written when all have. That takes half the time of a counter and a fence.
"""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from .mode import INTERPRETED, kernel, tl


@kernel
def publish(words, x, there):
    """Hand over entries ``x`` of f32. Nothing else that was written before is there for who collects them."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits == 0, -(1 << 31), bits)  # 0 says that there is nothing yet: it is handed over as -0
    tl.atomic_xchg(words, bits, there, sem="relaxed")


@kernel
def collected(words, there, THREADS: tl.constexpr):
    """What others of so many ``THREADS`` each have published at ``words``, f32, once all of it is there.

    ``words`` are 0 before and behind. Who publishes must wait for no program of its kernel, and what is not
    ``there`` has an address all the same.
    """
    bits = _seen(words)
    while tl.min(tl.ravel(tl.where(there, bits != 0, True).to(tl.int32)), 0) == 0:
        bits = _seen(words)
    if bits.numel < THREADS:  # several threads look at one word, and only one of them has to have seen it
        bits = _seen(words)
        tl.debug_barrier()
    tl.store(words, tl.zeros_like(bits), there)
    return bits.to(tl.float32, bitcast=True)


@kernel
def _seen(words):
    """Words as they are in the L2 cache now."""
    if INTERPRETED:
        return tl.load(words)
    else:
        at = words.to(tl.int64, bitcast=True)
        return tl.inline_asm_elementwise(
            "ld.relaxed.gpu.global.b32 $0, [$1];", "=r,l", [at], tl.int32, False, 1
        )  # fmt: skip
