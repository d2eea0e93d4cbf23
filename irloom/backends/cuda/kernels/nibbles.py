"""Four-bit weights in fragments (``fragments``), as operands of tensor cores.

An entry is cut out under the exponent of a float that is 128 or 1024 then, which is taken off again: two
entries at a time, none of which is ever converted, and all of it exact.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from .mode import INTERPRETED, kernel, tl


def _cut(then: str) -> list[str]:
    """What cuts out two entries: for bf16 and f16, unsigned and signed, the first to the fourth."""
    return [
        "{ .reg .b32 t, m; "
        + (f"shr.u32 t, $2, {4 * j}; " if j else "mov.b32 t, $2; ")
        + f"lop3.b32 t, t, 0x000f000f, {one + flip:#06x}{one + flip:04x}, 0x6a; "
        + f"mov.b32 m, {one + flip:#06x}{one + flip:04x}; sub.{to}x2 t, t, m; "
        + then.format(to=to)
        + "mov.b32 {$0, $1}, t; }"
        for to, one in (("bf16", 0x4300), ("f16", 0x6400))
        for flip in (0, 8)
        for j in range(4)
    ]


_PLAIN = tl.constexpr(tuple(_cut("")))
_SCALED = tl.constexpr(tuple(_cut("mul.{to}x2 t, t, $3; ")))
_SHIFTED = tl.constexpr(tuple(_cut("sub.{to}x2 t, t, $4; mul.{to}x2 t, t, $3; ")))


@kernel
def cut(words, J: tl.constexpr, SIGNED: tl.constexpr, to: tl.constexpr):
    """The ``J``-th entries of both halves of words [..]: [.., 2] of ``to``, which has 16 bits."""
    if INTERPRETED:
        low, high = _entry(words, J, SIGNED), _entry(words, J + 4, SIGNED)
        return tl.join(low, high)
    else:
        HALF: tl.constexpr = to == tl.float16
        PAIR: tl.constexpr = (tl.float16, tl.float16) if HALF else (tl.bfloat16, tl.bfloat16)
        low, high = tl.inline_asm_elementwise(
            _PLAIN[8 * HALF + 4 * SIGNED + J], "=h,=h,r", [words], PAIR, True, 1
        )
        return tl.join(low, high)


@kernel
def cut_scaled(words, by, zero, J: tl.constexpr, SIGNED: tl.constexpr, to: tl.constexpr):
    """``(entry - zero) * by`` of the same, rounded to ``to``; ``by`` and ``zero`` (or None) are pairs."""
    words, by = tl.broadcast(words, by)
    if zero is not None:
        words, zero = tl.broadcast(words, zero)
    if INTERPRETED:
        low, high = _entry(words, J, SIGNED), _entry(words, J + 4, SIGNED)
        if zero is not None:
            low, high = low - one_of(zero, 0, to), high - one_of(zero, 0, to)
        return tl.join(low * one_of(by, 0, to), high * one_of(by, 0, to))
    else:
        HALF: tl.constexpr = to == tl.float16
        PAIR: tl.constexpr = (tl.float16, tl.float16) if HALF else (tl.bfloat16, tl.bfloat16)
        if zero is None:
            low, high = tl.inline_asm_elementwise(
                _SCALED[8 * HALF + 4 * SIGNED + J], "=h,=h,r,r", [words, by], PAIR, True, 1
            )
        else:
            low, high = tl.inline_asm_elementwise(
                _SHIFTED[8 * HALF + 4 * SIGNED + J], "=h,=h,r,r,r", [words, by, zero], PAIR, True, 1
            )
        return tl.join(low, high)


@kernel
def _entry(words, J: tl.constexpr, SIGNED: tl.constexpr):
    y = (words >> (4 * J)) & 15
    if SIGNED:
        y = (y ^ 8) - 8
    return y.to(tl.float32)


@kernel
def one_of(four, J: tl.constexpr, to: tl.constexpr):
    """The ``J``-th of what lies in a word for each of a block's spans, in f32: entries of ``to``."""
    BITS: tl.constexpr = to.primitive_bitwidth
    if BITS == 8:
        return ((four >> (8 * J)).to(tl.int8)).to(to, bitcast=True).to(tl.float32)
    else:
        return (four >> (16 * J)).to(tl.int16).to(to, bitcast=True).to(tl.float32)


@kernel
def pair(y, to: tl.constexpr):
    """f32 rounded to ``to``, which has 16 bits, twice in a word."""
    bits = y.to(to).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)


@kernel
def matrix(e, M: tl.constexpr, S: tl.constexpr):
    """Entries [M / 16, S / 16, 128, 2] of fragments as a matrix [M, S]: each stays where it is."""
    e = tl.reshape(e, (M // 16, S // 16, 8, 4, 2, 4))  # strip, fragment, row, column, half, entry
    return tl.reshape(tl.permute(e, (0, 4, 2, 1, 3, 5)), (M, S))


@kernel
def strip_of(part, i, N: tl.constexpr, STRIPS: tl.constexpr, GATED: tl.constexpr):
    """The ``i``-th strip of a part of a weight of ``N`` rows; where gated, a strip of gates and then what
    they are for. ``N / 16`` or more where there is none.
    """
    strip = part * STRIPS + i
    if GATED:
        half = part * (STRIPS // 2) + i // 2
        strip = tl.where(half < N // 32, half + (i % 2) * (N // 32), N // 16)
    return strip
