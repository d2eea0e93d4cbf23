"""A number between 0 and 1 from a request's seed and how many tokens it has: ``runtime.sampler.uniforms``."""

from __future__ import annotations

from .mode import kernel, tl


@kernel
def uniform(low, high, position):
    """48 bits of Philox4x32-10 with counter ``position`` and key ``high``, ``low`` (i32 each), as f64."""
    a, b = _word(position), tl.zeros([], tl.uint64)
    c, d = b, b
    k0, k1 = _word(low), _word(high)
    for _ in tl.static_range(10):
        ab, cd = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (cd >> 32) ^ b ^ k0, cd & 0xFFFFFFFF, (ab >> 32) ^ d ^ k1, ab & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    bits = (a << 16) | (b >> 16)
    return (bits.to(tl.int64).to(tl.float64) + 0.5) * (1.0 / 281474976710656.0)


@kernel
def _word(x):
    """32 bits of an i32 in 64."""
    return x.to(tl.int64).to(tl.uint64) & 0xFFFFFFFF
