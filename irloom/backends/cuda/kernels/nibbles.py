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
        + (f"shr.u32 t, $1, {4 * j}; " if j else "mov.b32 t, $1; ")
        + f"lop3.b32 t, t, 0x000f000f, {one + flip:#06x}{one + flip:04x}, 0x6a; "
        + f"mov.b32 m, {one + flip:#06x}{one + flip:04x}; sub.{to}x2 t, t, m; "
        + then.format(to=to)
        + "mov.b32 $0, t; }"
        for to, one in (("bf16", 0x4300), ("f16", 0x6400))
        for flip in (0, 8)
        for j in range(4)
    ]


_PLAIN = tl.constexpr(tuple(_cut("")))
_SCALED = tl.constexpr(tuple(_cut("mul.{to}x2 t, t, $2; ")))
_SHIFTED = tl.constexpr(tuple(_cut("sub.{to}x2 t, t, $3; mul.{to}x2 t, t, $2; ")))


@kernel
def cut(halves, J: tl.constexpr, SIGNED: tl.constexpr, to: tl.constexpr):
    """The ``J``-th entries of 16 bits each, as ``to``, which has 16 bits too."""
    if INTERPRETED:
        return _entry(halves, J, SIGNED)
    elif to == tl.float16:
        return tl.inline_asm_elementwise(_PLAIN[8 + 4 * SIGNED + J], "=r,r", [halves], tl.float16, True, 2)
    else:
        return tl.inline_asm_elementwise(_PLAIN[4 * SIGNED + J], "=r,r", [halves], tl.bfloat16, True, 2)


@kernel
def cut_scaled(halves, by, zero, J: tl.constexpr, SIGNED: tl.constexpr, to: tl.constexpr):
    """``(entry - zero) * by`` of the same, rounded to ``to``, of which ``by`` and ``zero`` (or None) are."""
    halves, by = tl.broadcast(halves, by)
    if zero is not None:
        halves, zero = tl.broadcast(halves, zero)
    if INTERPRETED:
        y = _entry(halves, J, SIGNED)
        if zero is not None:
            y -= zero.to(tl.float32)
        return y * by.to(tl.float32)
    elif to == tl.float16:
        return _scaled(halves, by, zero, 8 + 4 * SIGNED + J, tl.float16)
    else:
        return _scaled(halves, by, zero, 4 * SIGNED + J, tl.bfloat16)


@kernel
def _scaled(halves, by, zero, WHICH: tl.constexpr, to: tl.constexpr):
    if zero is None:
        return tl.inline_asm_elementwise(_SCALED[WHICH], "=r,r,r", [halves, by], to.value, True, 2)
    else:
        return tl.inline_asm_elementwise(_SHIFTED[WHICH], "=r,r,r,r", [halves, by, zero], to.value, True, 2)


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
def matrix(e, M: tl.constexpr, S: tl.constexpr):
    """Entries [M / 16, S / 16, 256] of fragments as a matrix [M, S]: each stays where it is."""
    e = tl.reshape(e, (M // 16, S // 16, 8, 4, 2, 2, 2))  # strip, fragment, row, column, half, half, entry
    return tl.reshape(tl.permute(e, (0, 5, 2, 1, 4, 3, 6)), (M, S))


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
