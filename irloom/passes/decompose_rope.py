"""``decompose`` for rotary embedding: products with cosines and sines of each token's position."""

from __future__ import annotations

from irloom.ir.dims import divide
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Value
from irloom.ir.ops import (
    add,
    arange,
    concat,
    cos,
    div,
    kv_append,
    mul,
    pow_,
    reciprocal,
    reshape,
    rms_norm,
    rope,
    rope_append,
    sin,
    split,
    sub,
)

from .rewrite import Rewrite
from .wide import in_f32, to_elem


class Rope(Rewrite):
    """Each feature pair, turned by its angle."""

    def match(
        self, x: Value, positions: Value, inv_freq: Value | None, *,
        theta: float, rotary: int, interleaved: bool, scale: float,
    ) -> Value:  # fmt: skip
        return rope(x, positions, inv_freq, theta=theta, rotary=rotary, interleaved=interleaved, scale=scale)

    def replace(
        self, x: Value, positions: Value, inv_freq: Value | None,
        theta: float, rotary: int | None, interleaved: bool, scale: float,
    ) -> Value:  # fmt: skip
        width = int(str(x.type.dims[-1]))
        n = width if rotary is None else rotary
        whole, rest = (x, None) if n == width else split(x, dim=-1, sizes=(n, width - n))
        pairs = _pairs(in_f32(whole), interleaved)
        c, s = _turn(positions, in_f32(inv_freq) if inv_freq else _frequencies(theta, n), scale)
        turned = to_elem(_joined(*_rotated(*pairs, c, s), interleaved), x.type.plain)
        return turned if rest is None else concat(turned, rest, dim=-1)


def _frequencies(theta: float, rotary: int) -> Value:
    """Radians per token of each pair, f32[rotary / 2], computed as models do."""
    exponents = div(in_f32(arange(stop=rotary, step=2, elem=ELEMS["i32"])), float(rotary))
    return reciprocal(pow_(float(theta), exponents))


def _turn(positions: Value, inv_freq: Value, scale: float) -> tuple[Value, Value]:
    """Cosine and sine of every pair's angle, f32[T, 1, rotary / 2]."""
    tokens, pairs = positions.type.dims[0], inv_freq.type.dims[0]
    angle = mul(reshape(in_f32(positions), dims=(tokens, 1, 1)), reshape(inv_freq, dims=(1, 1, pairs)))
    c, s = cos(angle), sin(angle)
    return (c, s) if scale == 1 else (mul(c, scale), mul(s, scale))


def _pairs(x: Value, interleaved: bool) -> tuple[Value, Value]:
    """The first and the second feature of every pair: [T, heads, pairs], with neighbours one dim more."""
    *rows, n = x.type.dims
    half = int(str(divide(n, 2)))
    if not interleaved:
        return split(x, dim=-1, sizes=(half, half))
    a, b = split(reshape(x, dims=(*rows, half, 2)), dim=-1, sizes=(1, 1))
    return reshape(a, dims=(*rows, half)), reshape(b, dims=(*rows, half))


def _rotated(a: Value, b: Value, c: Value, s: Value) -> tuple[Value, Value]:
    return sub(mul(a, c), mul(b, s)), add(mul(b, c), mul(a, s))


def _joined(a: Value, b: Value, interleaved: bool) -> Value:
    if not interleaved:
        return concat(a, b, dim=-1)
    *rows, half = a.type.dims
    pair = concat(reshape(a, dims=(*rows, half, 1)), reshape(b, dims=(*rows, half, 1)), dim=-1)
    return reshape(pair, dims=(*rows, half * 2))


class RopeAppend(Rewrite):
    """Norms, rotations and the append, one after the other."""

    def match(
        self, q: Value, k: Value, v: Value | None, cache: Value, positions: Value, seqs: Value,
        q_norm: Value | None, k_norm: Value | None, inv_freq: Value | None, *,
        eps: float, theta: float, rotary: int, interleaved: bool, scale: float,
    ) -> tuple[Value, Value]:  # fmt: skip
        return rope_append(
            q, k, v, cache, positions, seqs, q_norm, k_norm, inv_freq,
            eps=eps, theta=theta, rotary=rotary, interleaved=interleaved, scale=scale,
        )  # fmt: skip

    def replace(
        self, q: Value, k: Value, v: Value | None, cache: Value, positions: Value, seqs: Value,
        q_norm: Value | None, k_norm: Value | None, inv_freq: Value | None,
        eps: float | None, theta: float, rotary: int | None, interleaved: bool, scale: float,
    ) -> tuple[Value, Value]:  # fmt: skip
        if eps is not None:
            q, k = rms_norm(q, q_norm, eps=eps), rms_norm(k, k_norm, eps=eps)
        q, k = (
            rope(x, positions, inv_freq, theta=theta, rotary=rotary, interleaved=interleaved, scale=scale)
            for x in (q, k)
        )
        return q, kv_append(cache, k, v, seqs)


ROPE_RULES = (RopeAppend(), Rope())
