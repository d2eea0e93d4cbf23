"""Finding the largest entries of a row, one after the other: what routers, ``topk`` and ``argmax`` share."""

from __future__ import annotations

from .mode import kernel, tl

LAST = tl.constexpr(-(1 << 63))
"""Below the key of every entry."""


@kernel
def order_keys(x, place):
    """Keys i64 that are ordered as ``x`` f32 is, NaN above all, and by the smaller ``place`` where equal.

    The high half orders floats as integers; the low half is what makes keys distinct, so that the largest
    key also says where it is.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x == 0, 0, tl.where(x != x, 0x7FFFFFFF, bits))
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@kernel
def place_of(key):
    """Where the entry of a key is."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@kernel
def largest(keys, COUNT: tl.constexpr, ROOM: tl.constexpr):
    """Places i32 [ROOM] of the ``COUNT`` largest of ``keys`` [n], largest first; the rest are -1."""
    rank = tl.arange(0, ROOM)
    found = tl.full([ROOM], -1, tl.int32)
    for i in range(COUNT):
        best = tl.max(keys, 0)
        found = tl.where(rank == i, place_of(best), found)
        keys = tl.where(keys == best, LAST, keys)
    return found
