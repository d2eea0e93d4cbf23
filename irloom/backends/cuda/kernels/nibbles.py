"""Four-bit weights in fragments (``fragments``), as operands of tensor cores.

For products of floats an entry is cut out under the exponent of a float that is 128 or 1024 then, which is
taken off again: two entries at a time, none of which is ever converted, and all of it exact. For products of
integers it stays in the upper half of a byte: four at a time.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import re

from .mode import CHAINED, INTERPRETED, kernel, tl


def _cut(then: str) -> list[str]:
    """What cuts out four entries: for bf16 and f16, unsigned and signed, lower halves of bytes and upper."""
    made = [
        "{ .reg .b32 t, m, e, a, b; "
        + ("shr.u32 t, $2, 4; " if high else "mov.b32 t, $2; ")
        + f"mov.b32 m, {one + flip:#06x}{one + flip:04x}; mov.b32 e, {one << 16:#010x}; "
        + f"lop3.b32 t, t, 0x0f0f0f0f, {flip * 0x01010101:#010x}, 0x6a; "
        + "prmt.b32 a, t, e, 0x7170; prmt.b32 b, t, e, 0x7372; "
        + "".join(
            f"sub.{to}x2 {y}, {y}, m; " + then.format(to=to, y=y, by=3 + i, zero=5 + i)
            for i, y in enumerate("ab")
        )
        + "mov.b32 $0, a; mov.b32 $1, b; }"
        for to, one in (("bf16", 0x4300), ("f16", 0x6400))
        for flip in (0, 8)
        for high in (False, True)
    ]
    return made if CHAINED else [_joined(asm) for asm in made]


def _joined(asm: str) -> str:
    """The same in front of SM 9.0, where bf16 is multiplied and added at once alone: by minus one, and to
    minus zero, which is as exact.
    """
    asm = re.sub(r"sub\.bf16x2 (\S+), (\S+), (\S+);", r"fma.rn.bf16x2 \1, \3, minus, \2;", asm)
    asm = re.sub(r"mul\.bf16x2 (\S+), (\S+), (\S+);", r"fma.rn.bf16x2 \1, \2, \3, zero;", asm)
    ones = ".reg .b32 minus, zero; mov.b32 minus, 0xbf80bf80; mov.b32 zero, 0x80008000; "
    return asm.replace("{ ", "{ " + ones, 1)


_PLAIN = tl.constexpr(tuple(_cut("")))
_SCALED = tl.constexpr(tuple(_cut("mul.{to}x2 {y}, {y}, ${by}; ")))
_SHIFTED = tl.constexpr(tuple(_cut("sub.{to}x2 {y}, {y}, ${zero}; mul.{to}x2 {y}, {y}, ${by}; ")))
_EIGHT = tl.constexpr(
    tuple(
        f"{{ .reg .b32 t; {move}; lop3.b32 $0, t, 0xf0f0f0f0, {flip}, 0x6a; }}"
        for flip in ("0x80808080", "0")
        for move in ("shl.b32 t, $1, 4", "mov.b32 t, $1")
    )
)


@kernel
def cut(pairs, HIGH: tl.constexpr, SIGNED: tl.constexpr, to: tl.constexpr):
    """The lower entry of each byte, or the upper one, as ``to``, which has 16 bits."""
    if INTERPRETED:
        return _entry(pairs, HIGH, SIGNED)
    elif to == tl.float16:
        return tl.inline_asm_elementwise(
            _PLAIN[4 + 2 * SIGNED + HIGH], "=r,=r,r", [pairs], tl.float16, True, 4
        )
    else:
        return tl.inline_asm_elementwise(_PLAIN[2 * SIGNED + HIGH], "=r,=r,r", [pairs], tl.bfloat16, True, 4)


@kernel
def cut_scaled(pairs, by, zero, HIGH: tl.constexpr, SIGNED: tl.constexpr, to: tl.constexpr):
    """``(entry - zero) * by`` of the same, rounded to ``to``, of which ``by`` and ``zero`` (or None) are."""
    pairs, by = tl.broadcast(pairs, by)
    if zero is not None:
        pairs, zero = tl.broadcast(pairs, zero)
    if INTERPRETED:
        y = _entry(pairs, HIGH, SIGNED)
        if zero is not None:
            y -= zero.to(tl.float32)
        return y * by.to(tl.float32)
    elif to == tl.float16:
        return _scaled(pairs, by, zero, 4 + 2 * SIGNED + HIGH, tl.float16)
    else:
        return _scaled(pairs, by, zero, 2 * SIGNED + HIGH, tl.bfloat16)


@kernel
def _scaled(pairs, by, zero, WHICH: tl.constexpr, to: tl.constexpr):
    if zero is None:
        return tl.inline_asm_elementwise(_SCALED[WHICH], "=r,=r,r,r,r", [pairs, by], to.value, True, 4)
    else:
        return tl.inline_asm_elementwise(
            _SHIFTED[WHICH], "=r,=r,r,r,r,r,r", [pairs, by, zero], to.value, True, 4
        )


@kernel
def cut_eight(pairs, HIGH: tl.constexpr, SIGNED: tl.constexpr):
    """The same entries, or what they are above 8 where they are unsigned, times 16: i8."""
    if INTERPRETED:
        y = _entry(pairs, HIGH, True) if SIGNED else _entry(pairs, HIGH, False) - 8
        return (y * 16).to(tl.int8)
    return tl.inline_asm_elementwise(_EIGHT[2 * SIGNED + HIGH], "=r,r", [pairs], tl.int8, True, 4)


@kernel
def _entry(pairs, HIGH: tl.constexpr, SIGNED: tl.constexpr):
    y = (pairs >> (4 * HIGH)) & 15
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
    """Entries [M / 16, S / 32, 512] of fragments as a matrix [M, S]: each stays where it is."""
    # strip, fragment, row, column, half of 32 entries, half of the rows, half of 16 entries, entry
    e = tl.reshape(e, (M // 16, S // 32, 8, 4, 2, 2, 2, 2))
    return tl.reshape(tl.permute(e, (0, 5, 2, 1, 4, 6, 3, 7)), (M, S))


@kernel
def fragments_of_slices(e, STRIPS: tl.constexpr, S: tl.constexpr):
    """Entries [STRIPS * slices, S / 32, 512] as matrices [slices, 16 STRIPS, S]: those that lie in a word
    lie side by side.
    """
    SLICES: tl.constexpr = e.shape[0] // STRIPS
    e = tl.reshape(e, (STRIPS, SLICES, S // 32, 8, 4, 2, 2, 2, 2))
    return tl.reshape(tl.permute(e, (1, 0, 6, 3, 2, 5, 4, 7, 8)), (SLICES, STRIPS * 16, S))


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
