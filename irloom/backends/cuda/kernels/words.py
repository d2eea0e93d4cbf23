"""Weights as words of 32 bits, and the floats in them: one of f32 to eight of four bits.

A word is one register until it is needed, whatever is in it. Entries of four bits are cut out under the
exponent of 128 or of 2048, which makes a float that much more than the entry, and what is too much in a sum
is taken off the sum: entries are not converted, nor is a zero subtracted from each. That costs some of the 24
bits of a sum, which rows of f32 can tell, so for these (``EXACT``) it is taken off each entry.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

import torch

from .mode import INTERPRETED, kernel, rounded, tl

# ptxas makes two operations of (a & b) ^ c, but for the one that can do both
_CUT = tl.constexpr(
    tuple(
        f"lop3.b32 $0, $1, {mask:#010x}, {exponent + flip:#010x}, 0x6a;"
        for mask, exponent, sign in ((0xF000, 0x45000000, 0x8000), (0xF0000, 0x43000000, 0x80000))
        for flip in (0, sign)
    )
)
_E4M3 = tl.constexpr("""
{
.reg .b16 low, high, a, b, c, d;
.reg .b32 first, second;
mov.b32 {low, high}, $4;
cvt.rn.f16x2.e4m3x2 first, low;
cvt.rn.f16x2.e4m3x2 second, high;
mov.b32 {a, b}, first;
mov.b32 {c, d}, second;
cvt.f32.f16 $0, a;
cvt.f32.f16 $1, b;
cvt.f32.f16 $2, c;
cvt.f32.f16 $3, d;
}
""")
_PACK_BF16 = tl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")
_PACK_F16 = tl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")


@kernel
def entries_of(words, KIND: tl.constexpr, EXACT: tl.constexpr):
    """The floats in words of ``KIND``, in their order; of four bits ``excess`` more than they are."""
    if KIND == "f32":
        return (words.to(tl.float32, bitcast=True),)
    elif KIND == "bf16":
        low, high = words << 16, words & -0x10000
        return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
    elif KIND == "f16":
        low, high = words.to(tl.int16), (words >> 16).to(tl.int16)
        return low.to(tl.float16, bitcast=True).to(tl.float32), high.to(tl.float16, bitcast=True).to(
            tl.float32
        )
    elif KIND == "f8e4m3":
        return e4m3_of(words)
    elif KIND == "i8":
        a, b, c, d = words << 24 >> 24, words << 16 >> 24, words << 8 >> 24, words >> 24
        return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
    elif KIND == "u8":
        a, b, c, d = words & 255, words >> 8 & 255, words >> 16 & 255, words >> 24 & 255
        return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
    else:
        SIGNED: tl.constexpr = KIND == "i4"
        return (
            cut(words << 16, True, SIGNED, EXACT),
            cut(words << 8, False, SIGNED, EXACT),
            cut(words << 8, True, SIGNED, EXACT),
            cut(words, False, SIGNED, EXACT),
            cut(words, True, SIGNED, EXACT),
            cut(words >> 8, False, SIGNED, EXACT),
            cut(words >> 8, True, SIGNED, EXACT),
            cut(words >> 12, True, SIGNED, EXACT),
        )


def norm_operand(norm: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """A norm's weight as ``norm_words`` takes it: words, where it is of the element of ``rows``."""
    return norm if norm is None or norm.dtype != rows.dtype else norm.view(torch.int32)


@kernel
def norm_words(norm, at, inside):
    """Words of two entries of a norm's weight; where it is not words, the first entries and the second."""
    if norm.dtype.element_ty == tl.int32:
        return (tl.load(norm + at, inside, 0),)
    else:
        first, second = tl.load(norm + 2 * at, inside, 0.0), tl.load(norm + 2 * at + 1, inside, 0.0)
        return first.to(tl.float32), second.to(tl.float32)


@kernel
def norm_pair(words, KIND: tl.constexpr):
    """The first entries and the second of what ``norm_words`` has, whose words are of ``KIND``."""
    if words[0].dtype == tl.int32:
        return entries_of(words[0], KIND, True)
    else:
        return words


@kernel
def excess(h, KIND: tl.constexpr, EXACT: tl.constexpr):
    """What is too much in the sum of products of ``entries_of`` with those of a row."""
    if KIND == "i4" or KIND == "u4":
        low, high = h[1] + h[3] + h[5], h[0] + h[2] + h[4] + h[6] + h[7]
        over = 0.0 * low if EXACT else 128.0 * high + 2048.0 * low
        if KIND == "i4":
            over += 8.0 * (low + high)
    else:
        over = 0.0 * h[0]
    return over


@kernel
def by_word(h, WORDS: tl.constexpr, PER: tl.constexpr):
    """A row's entries [WORDS * PER] as ``PER`` tensors: those for the first of each word, the second, ..."""
    if PER == 1:
        return (h,)
    elif PER == 2:
        return tl.split(tl.reshape(h, (WORDS, 2)))
    elif PER == 4:
        even, odd = tl.split(tl.reshape(h, (WORDS, 2, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return a, b, c, d
    else:
        even, odd = tl.split(tl.reshape(h, (WORDS, 2, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        a, e = tl.split(first)
        b, f = tl.split(second)
        c, g = tl.split(third)
        d, i = tl.split(fourth)
        return a, b, c, d, e, f, g, i


@kernel
def packed(low, high, KIND: tl.constexpr):
    """Two f32 as a pair."""
    if INTERPRETED:
        to: tl.constexpr = tl.bfloat16 if KIND == "bf16" else tl.float16
        low, high = rounded(low, to).to(tl.int16, bitcast=True), rounded(high, to).to(tl.int16, bitcast=True)
        return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)
    else:
        asm: tl.constexpr = _PACK_BF16 if KIND == "bf16" else _PACK_F16
        return tl.inline_asm_elementwise(asm, "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1)


@kernel
def cut(words, HIGH: tl.constexpr, SIGNED: tl.constexpr, EXACT: tl.constexpr):
    """The entry at bit 16 (``HIGH``) or 12, plus 128 or 2048; 8 more where ``SIGNED``."""
    if INTERPRETED:
        MASK: tl.constexpr = 0x000F0000 if HIGH else 0x0000F000
        EXPONENT: tl.constexpr = 0x43000000 if HIGH else 0x45000000
        FLIP: tl.constexpr = MASK & 0x00088000 if SIGNED else 0
        w = (words & MASK) ^ (EXPONENT + FLIP)
    else:
        w = tl.inline_asm_elementwise(
            _CUT[2 * HIGH + SIGNED], "=r,r", [words], dtype=tl.int32, is_pure=True, pack=1
        )
    y = w.to(tl.float32, bitcast=True)
    if EXACT:
        y -= 128.0 if HIGH else 2048.0
    return y


@kernel
def e4m3_of(words):
    """The four entries of e4m3 in words."""
    if INTERPRETED:
        return e4m3_byte(words), e4m3_byte(words >> 8), e4m3_byte(words >> 16), e4m3_byte(words >> 24)
    else:
        FOUR: tl.constexpr = (tl.float32, tl.float32, tl.float32, tl.float32)
        return tl.inline_asm_elementwise(_E4M3, "=f,=f,=f,=f,r", [words], dtype=FOUR, is_pure=True, pack=1)


@kernel
def e4m3_byte(words):
    """The entry in the lowest byte: its bits are those of a float whose exponent is 120 less."""
    bits = ((words & 0x80) << 24) | ((words & 0x7F) << 20)
    y = bits.to(tl.float32, bitcast=True) * 2.0**60 * 2.0**60
    return tl.where((words & 0x7F) == 0x7F, float("nan"), y)
