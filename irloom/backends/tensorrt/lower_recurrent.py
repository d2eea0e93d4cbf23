"""Lowering of recurrent ops whose state is the last few tokens: convolutions and shifts.

By slot a token's past lies in front of it: the state, then the slot's own tokens. Each result is then a sum
over entries a fixed distance back, for all tokens at once. What goes on from token to token through a sum of
everything before (scans, delta rules) is left to its body.
"""

from __future__ import annotations

from collections.abc import Sequence

from irloom.ir.dims import Dim, product
from irloom.ir.elem import ELEMS

from .context import Context, lowers
from .layers.elementwise import Select
from .layers.fill import Linspace
from .layers.index import Gather
from .layers.shape import Concatenation, Slice
from .network import Tensor
from .program import N

F32, I32 = ELEMS["f32"], ELEMS["i32"]


@lowers("carried_causal_conv")
def causal_conv(c: Context) -> Sequence[Tensor]:
    """One product for each tap, in f32, rounded once."""
    x, weight, states = c["x"], c.cast(c["weight"], F32), c["states"]
    channels, taps = weight.dims
    assert isinstance(taps, int)
    if taps == 1:
        raise c.refuse("a convolution of one tap has a state without entries")
    seen = behind(c, c.permute(states, (0, 2, 1)), x)
    wide, out = c.cast(seen, F32), None
    for i in range(taps):
        at = c.add(Slice(wide, (0, i, 0), (states.dims[0], N, channels)))
        tap = c.reshape(c.add(Slice(weight, (0, i), (channels, 1))), (1, 1, channels))
        part = c.binary("prod", at, tap)
        out = part if out is None else c.binary("sum", out, part)
    assert out is not None
    if c.has("bias"):
        out = c.binary("sum", out, c.cast(c["bias"], F32))
    kept = c.permute(last(c, seen, taps - 1), (0, 2, 1))
    return c.cast(rows(c, out, x.dims), x.elem), c.cast(kept, states.elem)


@lowers("carried_token_shift")
def token_shift(c: Context) -> Sequence[Tensor]:
    """The tokens of a slot behind its state, without the last."""
    x, states = c["x"], c["states"]
    slots, *one = states.dims
    seen = behind(c, c.reshape(states, (slots, 1, *one)), x)
    before = c.add(Slice(seen, (0,) * len(seen.dims), (slots, N, *one)))
    kept = c.reshape(last(c, seen, 1), states.dims)
    return rows(c, before, x.dims), c.cast(kept, states.elem)


def behind(c: Context, past: Tensor, x: Tensor) -> Tensor:
    """[B, k + N, ...]: ``past`` [B, k, ...], zeros where a sequence begins, then the tokens of the slot."""
    if not c.to.linear:
        raise c.refuse("states lie where the page table says, and layers take slots")
    own = c.add(Gather(x, c.step("pad")))
    rank, start = len(past.dims), c.step("past")
    began = c.reshape(c.binary("greater", start, 0), (*start.dims, *(1,) * (rank - 1)))
    past = c.cast(past, x.elem)
    return c.add(Concatenation((c.add(Select(began, past, c.number(0.0, x.elem, rank))), own), 1))


def last(c: Context, seen: Tensor, count: int) -> Tensor:
    """The last ``count`` entries of each slot [B, count, ...]: its state again where it brings no token."""
    starts, slots = c.step("starts"), seen.dims[0]
    ends, begins = (c.add(Slice(starts, (i,), (slots,))) for i in (1, 0))
    new = c.reshape(c.binary("sub", ends, begins), (slots, 1))
    at = c.binary("sum", new, c.add(Linspace(I32, (1, count), 0, (0, 1))))
    return c.add(Gather(seen, at, 1, 1))


def rows(c: Context, x: Tensor, dims: tuple[Dim, ...]) -> Tensor:
    """The packed rows of [B, N, ...]."""
    flat = c.reshape(x, (product(x.dims[:2]), *dims[1:]))
    return c.add(Gather(flat, c.step("unpad")))
