"""SHA-256 of many pieces of memory at a time: a lane hashes a piece, since nothing within one can be shared.

A lane waits for its own last round and makes some 40 MB/s, but a GPU has tens of thousands. FIPS 180-4.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Sequence

import torch

from .mode import INTERPRETED, kernel, tl, varying

BLOCK = 64
"""Bytes that a round of rounds takes in: pieces have a multiple of them."""
ALIGN = 16
"""Bytes at whose multiples pieces begin: a load takes as many."""
LANES = 128
"""Pieces of a program: a warp for each of an SM's schedulers."""

_PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, n))]
_FOUR = tl.constexpr("ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4];")


def _fraction(n: int, root: int) -> int:
    """The first 32 bits of what a root of ``n`` has behind the point."""
    x = 0
    for bit in reversed(range(36)):
        x |= (1 << bit) * ((x | 1 << bit) ** root <= n << 32 * root)
    return x & 0xFFFFFFFF


_BEGIN = tl.constexpr(tuple(_fraction(p, 2) for p in _PRIMES[:8]))
_ROUNDS = tl.constexpr(tuple(_fraction(p, 3) for p in _PRIMES))


class Sha256:
    """Hashes pieces of ``memory``, u8 on any device: piece ``i`` has ``sizes[i]`` bytes from ``starts[i]``
    on, multiples of ``BLOCK`` and of ``ALIGN``.

    As soon as this is made, the kernel is loaded, and where pieces lie is on the device.
    """

    def __init__(self, memory: torch.Tensor, starts: Sequence[int], sizes: Sequence[int]) -> None:
        assert not any(n % ALIGN for n in starts) and not any(n % BLOCK for n in sizes)
        assert all(start + n <= len(memory) for start, n in zip(starts, sizes, strict=True))
        self.order = sorted(range(len(sizes)), key=lambda i: -sizes[i])  # lanes side by side end together
        words = torch.tensor([starts[i] // 4 for i in self.order], dtype=torch.int64)
        blocks = torch.tensor([sizes[i] // BLOCK for i in self.order], dtype=torch.int32)
        self.memory, self.words = memory.view(torch.int32), words.to(memory.device)
        self.blocks = blocks.to(memory.device)
        self.digests = torch.empty((len(sizes), 8), dtype=torch.int32, device=memory.device)
        self._launch(0)

    def __call__(self) -> list[bytes]:
        """The digest of each piece, as memory is now."""
        self._launch(len(self.order))
        found = dict(zip(self.order, self.digests.cpu().numpy(), strict=True))
        return [found[i].tobytes() for i in range(len(found))]

    def _launch(self, count: int) -> None:
        given = self.digests, self.memory, self.words, self.blocks, count
        sha256_pieces[(-(-count // LANES),)](*given, LANES, num_warps=LANES // 32)


@varying("count")
def sha256_pieces(digests, memory, starts, blocks, count, LANES: tl.constexpr):
    """``digests`` i32[count, 8], in the order of their bytes, of ``count`` pieces of ``memory``, i32 words.

    Piece ``i`` has ``blocks[i]`` i32 times 64 bytes from word ``starts[i]`` on, i64 and a multiple of four.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    real = lane < count
    at = memory + tl.load(starts + lane, real, 0)
    own = tl.load(blocks + lane, real, 0)
    last = tl.maximum(own - 1, 0)
    state = _begun(own)
    words, following = _block(at), _block(at + 16 * tl.minimum(last, 1).to(tl.int64))
    for i in range(tl.max(own, 0) + 1):
        later = _block(at + 16 * tl.minimum(i + 2, last).to(tl.int64))  # a block takes longer than memory
        state = _renewed(state, _padded(words, i < own, own), i <= own)
        words, following = following, later
    for j in tl.static_range(8):
        tl.store(digests + lane * 8 + j, _mirrored(state[j]).to(tl.int32, bitcast=True), real)


@kernel
def _begun(own):
    """The state of every piece at first."""
    zero, state = (own * 0).to(tl.uint32), ()
    for j in tl.static_range(8):
        one = (zero + _BEGIN[j],)
        state = state + one
    return state


@kernel
def _block(at):
    """The 16 words of a block."""
    return _four(at) + _four(at + 4) + _four(at + 8) + _four(at + 12)


@kernel
def _four(at):
    """Four words in one load."""
    if INTERPRETED:
        return (_word(at), _word(at + 1), _word(at + 2), _word(at + 3))
    else:
        WORDS: tl.constexpr = (tl.uint32, tl.uint32, tl.uint32, tl.uint32)
        return tl.inline_asm_elementwise(_FOUR, "=r,=r,=r,=r,l", [at], dtype=WORDS, is_pure=True, pack=1)


@kernel
def _word(at):
    return tl.load(at).to(tl.uint32, bitcast=True)


@kernel
def _padded(words, inside, own):
    """A block of a piece as numbers; behind its last one stand a bit and its length in bits."""
    out = (tl.where(inside, _mirrored(words[0]), 0x80000000),)
    for j in tl.static_range(1, 15):
        one = (tl.where(inside, _mirrored(words[j]), 0),)
        out = out + one
    length = (tl.where(inside, _mirrored(words[15]), own.to(tl.uint32) * 512),)
    return out + length


@kernel
def _renewed(state, w, counts):
    """The state behind a block; the one before it where the block does not count."""
    a, b, c, d, e, f, g, h = state
    for t in tl.static_range(64):
        if t >= 16:
            one = (w[0] + _spread(w[1], 7, 18, 3) + w[9] + _spread(w[14], 17, 19, 10),)
            w = w[1:] + one
        low = h + _ROUNDS[t] + w[t if t < 16 else 15] + _turned(e, 6, 11, 25) + (g ^ (e & (f ^ g)))
        high = _turned(a, 2, 13, 22) + ((a & b) | (c & (a | b)))
        a, b, c, d, e, f, g, h = low + high, a, b, c, d + low, e, f, g
    after, out = (a, b, c, d, e, f, g, h), ()
    for j in tl.static_range(8):
        one = (tl.where(counts, state[j] + after[j], state[j]),)
        out = out + one
    return out


@kernel
def _turned(x, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """Bits that go around to the right, by three distances."""
    return _around(x, A) ^ _around(x, B) ^ _around(x, C)


@kernel
def _spread(x, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """The same, but the third time they fall out."""
    return _around(x, A) ^ _around(x, B) ^ (x >> C)


@kernel
def _around(x, N: tl.constexpr):
    return (x >> N) | (x << (32 - N))


@kernel
def _mirrored(x):
    """The bytes of words the other way round."""
    return (_around(x, 8) & 0xFF00FF00) | (_around(x, 24) & 0x00FF00FF)
