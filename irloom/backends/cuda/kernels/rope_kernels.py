"""The kernel behind ``rope.py``: some heads of one token, normed, rotated, and put where they belong."""

from __future__ import annotations

from .mode import INTERPRETED, go_on, kernel, rounded, tl, triton, varying, wait


@varying("table_s", "pages")
def move_heads(
    out,
    q,
    k,
    v,
    keys,
    values,
    table,
    owner,
    positions,
    q_norm,
    k_norm,
    freq,
    out_t,
    out_h,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    keys_p,
    keys_e,
    keys_h,
    values_p,
    values_e,
    values_h,
    table_s,
    pages,
    eps,
    scale,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    Q_PARTS: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
    H: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """Program (t, i): of token ``t`` the ``i``-th ``H`` heads of queries, then as many of keys and values."""
    go_on(CHAIN)
    t, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait(CHAIN)
    position, by = tl.load(positions + t), 0.0
    if HALF > 0:
        pair = tl.arange(0, triton.next_power_of_2(HALF))
        by = tl.load(freq + pair, pair < HALF, 0.0).to(tl.float32)
    if part < Q_PARTS:
        if q is not None:
            h = part * H + tl.arange(0, H)[:, None]
            a, b, rest = _heads(q + t * q_t + h * q_h, h < Q_HEADS, D, HALF, INTERLEAVED)
            elem: tl.constexpr = q.dtype.element_ty
            a, b, rest = _normed(a, b, rest, q_norm, eps, elem, D, HALF, INTERLEAVED, NORM)
            a, b = _turned(a, b, position, by, scale, HALF)
            _put(out + t * out_t + h * out_h, a, b, rest, h < Q_HEADS, elem, D, HALF, INTERLEAVED)
    else:
        if k is not None:
            g = (part - Q_PARTS) * H + tl.arange(0, H)[:, None]
            c, d, more = _heads(k + t * k_t + g * k_h, g < K_HEADS, D, HALF, INTERLEAVED)
            x = 0.0
            if v is not None:
                x = _features(v + t * v_t + g * v_h, 0, g < K_HEADS, V)
            kind: tl.constexpr = k.dtype.element_ty
            c, d, more = _normed(c, d, more, k_norm, eps, kind, D, HALF, INTERLEAVED, NORM)
            c, d = _turned(c, d, position, by, scale, HALF)
            live, page, entry = _place(t, position, table, owner, table_s, pages, PAGE, STRIDE)
            live = live & (g < K_HEADS)
            to = keys + page * keys_p + entry * keys_e + g * keys_h
            _put(to, c, d, more, live, kind, D, HALF, INTERLEAVED)
            if v is not None:
                _store(values + page * values_p + entry * values_e + g * values_h, 0, x, live, kind, V)


@kernel
def _place(t, position, table, owner, table_s, pages, PAGE: tl.constexpr, STRIDE: tl.constexpr):
    """Whether token ``t`` has a place in the cache, and where: its page, the entry there."""
    s, j = tl.load(owner + t), position // PAGE
    live = (s >= 0) & (j >= 0) & (j < pages)
    page = tl.load(table + s.to(tl.int64) * table_s + j, live, -1).to(tl.int64)
    live = live & (page >= 0)
    if STRIDE > 1:
        live = live & ((position + 1) % STRIDE == 0)
    return live, page, (position % PAGE) // STRIDE


@kernel
def _turned(a, b, position, by, scale, HALF: tl.constexpr):
    """Pairs f32[H, pairs] of a token, rotated by its position times ``by`` [pairs], and times ``scale``."""
    if HALF == 0:
        return a, b
    else:
        cos, sin = waves(position.to(tl.float32) * by)
        cos, sin = (cos * scale)[None, :], (sin * scale)[None, :]
        return a * cos - b * sin, b * cos + a * sin


@kernel
def waves(angle):
    """Cosine and sine of radians up to millions, to 1e-6: by the GPU's own instructions, within one turn."""
    if INTERPRETED:
        cos, sin = tl.cos(angle), tl.sin(angle)
    else:
        turns = tl.floor(angle * 0.15915494309189535 + 0.5)
        angle = tl.fma(turns, -6.2831854820251465, angle)  # 2 pi as a number of f32,
        angle = tl.fma(turns, 1.7484556000744883e-07, angle)  # and what that is too large by
        cos = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
        sin = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
    return cos, sin


@kernel
def _heads(at, live, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Heads at pointers ``at`` [H, 1]: both features of each pair f32[H, pairs], and those of no pair."""
    a, b, rest = 0.0, 0.0, 0.0
    if HALF > 0:
        a, b = _pairs(at, live, HALF, INTERLEAVED)
    if D > 2 * HALF:
        rest = _features(at, 2 * HALF, live, D - 2 * HALF)
    return a, b, rest


@kernel
def _normed(
    a,
    b,
    rest,
    weight,
    eps,
    elem: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
):
    """Heads of ``D`` features scaled to unit root-mean-square, then by ``weight``; rounded to ``elem``."""
    if NORM:
        if weight is not None:
            at = weight + tl.zeros((1, 1), tl.int32)
            wa, wb, more = _heads(at, True, D, HALF, INTERLEAVED)
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1)
        if D > 2 * HALF:
            squares += tl.sum(rest * rest, 1)
        by = tl.rsqrt(squares / D + eps)[:, None]
        a, b, rest = a * by, b * by, rest * by
        if weight is not None:
            a, b, rest = a * wa, b * wb, rest * more
        a, b = rounded(a, elem).to(tl.float32), rounded(b, elem).to(tl.float32)
    return a, b, rest


@kernel
def _put(
    to, a, b, rest, live, elem: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """The inverse of ``_heads``, rounded to ``elem`` and then to what pointers ``to`` are of."""
    if HALF > 0:
        if INTERLEAVED:
            H: tl.constexpr = a.shape[0]
            x = tl.reshape(tl.join(a, b), (H, 2 * triton.next_power_of_2(HALF)))
            _store(to, 0, x, live, elem, 2 * HALF)
        else:
            _store(to, 0, a, live, elem, HALF)
            _store(to, HALF, b, live, elem, HALF)
    if D > 2 * HALF:
        _store(to, 2 * HALF, rest, live, elem, D - 2 * HALF)


@kernel
def _pairs(at, live, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The first and the second features of ``HALF`` pairs."""
    if INTERLEAVED:
        H: tl.constexpr = at.shape[0]
        x = _features(at, 0, live, 2 * HALF)
        return tl.split(tl.reshape(x, (H, triton.next_power_of_2(HALF), 2)))
    else:
        return _features(at, 0, live, HALF), _features(at, HALF, live, HALF)


@kernel
def _features(at, first, live, N: tl.constexpr):
    """``N`` features from the ``first`` on, in f32, of heads at pointers ``at`` [H, 1]."""
    col = tl.arange(0, triton.next_power_of_2(N))[None, :]
    return tl.load(at + first + col, live & (col < N), 0.0).to(tl.float32)


@kernel
def _store(to, first, x, live, elem: tl.constexpr, N: tl.constexpr):
    """The inverse of ``_features``: rounded to ``elem``, then to what pointers ``to`` are of."""
    col = tl.arange(0, triton.next_power_of_2(N))[None, :]
    if elem != to.dtype.element_ty and elem != tl.float32:
        x = rounded(x, elem).to(tl.float32)
    tl.store(to + first + col, rounded(x, to.dtype.element_ty), live & (col < N))
