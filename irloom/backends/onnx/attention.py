"""How rotary embedding, caches and attention become ONNX operators.

Rows come packed. Attention and the update of a cache want a batch of slots: rows are gathered to ``[B, N,
...]`` by ``pad`` and back by ``unpad``. What is gathered where a slot has no token is written behind the
slot's own keys, and what is computed for it is dropped. A key is seen by a token that stands at its place or
later: the ``n``-th token of a slot stands at ``past + n``, so that one mask serves prefill, chunks and
decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS, Elem, Paged
from irloom.ir.graph import Node, Value
from irloom.ir.ops.attention import default_frequencies
from irloom.ir.types import Type

from .elementwise import squeezed
from .graph import Graph
from .lower import Lowering, Operand, lowers
from .slots import Cache

F32, I32, I64 = ELEMS["f32"], ELEMS["i32"], ELEMS["i64"]
NEVER = float("-inf")


def _type(n: Node, at: int) -> Type:
    a = n.args[at]
    assert isinstance(a, Value)
    return a.type


@dataclass(frozen=True)
class Turn:
    """How far features are turned: cosine and sine [1, T, pairs], shared by all layers that turn alike."""

    cos: str
    sin: str
    rotary: int
    interleaved: bool


def turn(low: Lowering, n: Node, positions: str, freq: str | None, size: int) -> Turn:
    """What ``rope`` turns by, for heads of ``size`` features."""
    g, theta, scale = low.g, n.attrs["theta"], n.attrs["scale"]
    rotary = n.attrs["rotary"] if n.attrs["rotary"] is not None else size
    assert isinstance(theta, (int, float)) and isinstance(scale, (int, float)) and isinstance(rotary, int)

    def make() -> tuple[str, str]:
        given = freq or g.constant(default_frequencies(float(theta), rotary).tolist(), F32)
        at = g("Unsqueeze", g("Cast", positions, to=F32), g.ints(0, 2))
        angle = g("Mul", at, given)
        both = g("Cos", angle), g("Sin", angle)
        if scale == 1:
            return both
        factor = g.constant(float(scale), F32)
        return g("Mul", both[0], factor), g("Mul", both[1], factor)

    cos, sin = g.once(("turn", positions, freq, None if freq else theta, rotary, scale), make)
    return Turn(cos, sin, rotary, bool(n.attrs["interleaved"]))


@lowers("rope")
def rope(low: Lowering, n: Node, x: str, positions: str, freq: Operand) -> str:
    """``RotaryEmbedding`` on rows of heads; cosines and sines are made once a step."""
    t = _type(n, 0)
    return turned(low.g, x, t, turn(low, n, positions, freq, _int(t.dims[-1])))


def _int(d: Dim) -> int:
    assert isinstance(d, int)
    return d


def turned(g: Graph, x: str, t: Type, by: Turn) -> str:
    """``x`` [T, heads, size] turned, in f32."""
    heads, size = (_int(d) for d in t.dims[1:])
    rows = g.reshape(g.cast(x, t.plain, F32), (1, t.dims[0], heads * size))
    some: dict[str, Any] = {"rotary_embedding_dim": by.rotary} if by.rotary != size else {}
    how: dict[str, Any] = {"num_heads": heads, "interleaved": int(by.interleaved), **some}
    out = g("RotaryEmbedding", rows, by.cos, by.sin, **how)
    return g.cast(g.reshape(out, t.dims), F32, t.plain)


@lowers("kv_append")
def kv_append(low: Lowering, n: Node, cache: Cache, k: str, v: Operand, seqs: None) -> Cache:
    """``TensorScatter`` at ``past``: in the memory of the cache, where input and output share it."""
    g, elem = low.g, _type(n, 0).elem
    news = [(k, _type(n, 1)), *([(v, _type(n, 2))] if v else [])]
    assert isinstance(elem, Paged)
    if elem.stride != 1:
        raise low.refuse(n, f"a cache that keeps every {elem.stride}. token has no operator that renews it")
    past = g.once("past", lambda: g("Cast", g.given("past"), to=I64))
    made: list[str] = []
    for old, (new, of) in zip(cache.names, news, strict=True):
        slots = padded(g, g.cast(new, of.plain, elem.elem))
        made.append(g("TensorScatter", old, g.transpose(slots, 0, 2, 1, 3), past, axis=2))
    return Cache(tuple(made))


def padded(g: Graph, rows: str) -> str:
    """Packed rows [T, ...] as slots [B, N, ...]."""
    return g("Gather", rows, g.given("pad"), axis=0)


def packed(g: Graph, x: str, dims: tuple[Dim, ...]) -> str:
    """Slots [B, N, ...] as packed rows of ``dims`` [T, ...]."""
    flat = g("Reshape", x, g.ints(-1, *(_int(d) for d in dims[1:])))
    return g("Gather", flat, g.given("unpad"), axis=0)


# which keys a token sees


@dataclass(frozen=True)
class Places:
    """Where tokens stand [1 or B, 1, N, 1] and where keys do [1, 1, 1, L], i32."""

    at: str
    key: str


def places(g: Graph, k: str, cached: bool) -> Places:
    """Of a step whose keys are ``k`` [B, KV, L, size]: those of a cache, or of the step alone."""

    def at() -> str:
        count = g("Range", g.constant(0, I32), _count(g, g.given("pad"), 1), g.constant(1, I32))
        along = g("Unsqueeze", count, g.ints(0, 1, 3))
        return g("Add", along, g("Unsqueeze", g.given("past"), g.ints(1, 2, 3))) if cached else along

    def key() -> str:
        return g("Range", g.constant(0, I32), _count(g, k, 2), g.constant(1, I32))

    return Places(g.once(("at", cached), at), g.once(("key", cached), key))


def _count(g: Graph, x: str, dim: int) -> str:
    return g("Cast", g.scalar(g("Shape", x, start=dim, end=dim + 1)), to=I32)


def seen(g: Graph, p: Places, window: object, chunk: object) -> str:
    """Which keys tokens see, bool [1 or B, 1, N, L]."""
    out = g("LessOrEqual", p.key, p.at)
    if isinstance(window, int):
        out = g("And", out, g("Greater", p.key, g("Sub", p.at, g.constant(window, I32))))
    if isinstance(chunk, int):
        size = g.constant(chunk, I32)
        out = g("And", out, g("GreaterOrEqual", p.key, g("Mul", g("Div", p.at, size), size)))
    return out


def mask(g: Graph, p: Places, elem: Elem, window: object, chunk: object) -> str:
    """What is added to scores: 0 for keys that are seen, else -inf. Once for all layers that see alike."""

    def make() -> str:
        zero, never = g.constant(0.0, elem), g.constant(NEVER, elem)
        return g("Where", seen(g, p, window, chunk), zero, never)

    return g.once(("mask", p, elem, window, chunk), make)


@dataclass(frozen=True)
class Heads:
    """Queries [T, KV * G, size] over keys and values [B, KV, L, ...] of slots, and their heads."""

    q: str
    t: Type
    k: str
    v: str
    kv: int
    values: int

    @property
    def groups(self) -> int:
        """Query heads that share a KV head."""
        return _int(self.t.dims[1]) // self.kv


@lowers("paged_attention")
def paged_attention(
    low: Lowering,
    n: Node,
    q: str,
    cache: Cache,
    seqs: None,
    sinks: Operand,
    slopes: Operand,
    index: Operand,
    bias: Operand,
) -> str:
    """Over the whole cache of each slot, as long as the step makes it."""
    t, elem = _type(n, 1), _type(n, 1).elem
    assert isinstance(elem, Paged)
    kv, size = _int(t.dims[1]), _int(t.dims[2])
    values = n.attrs["values"] if elem.values == 0 else elem.values if elem.values is not None else size
    assert isinstance(values, int)
    g, x = low.g, _type(n, 0)
    k = g.cast(cache.k, elem.elem, x.plain)
    if cache.v is not None:
        v = g.cast(cache.v, elem.elem, x.plain)
    else:
        v = g("Slice", k, g.ints(0), g.ints(values), g.ints(3)) if values != size else k
    heads = Heads(q, x, k, v, kv, values)
    return attend(low, n, heads, places(g, cache.k, cached=True), (sinks, slopes, index, bias), 3)


@lowers("attention")
def attention(
    low: Lowering,
    n: Node,
    q: str,
    k: str,
    v: str,
    seqs: None,
    sinks: Operand,
    slopes: Operand,
    index: Operand,
    bias: Operand,
) -> str:
    """Over the tokens of the step alone: a program without caches."""
    g, t = low.g, _type(n, 1)
    keys, vals = (g.transpose(padded(g, x), 0, 2, 1, 3) for x in (k, v))
    heads = Heads(q, _type(n, 0), keys, vals, _int(t.dims[1]), _int(_type(n, 2).dims[2]))
    return attend(low, n, heads, places(g, keys, cached=False), (sinks, slopes, index, bias), 4)


def attend(low: Lowering, n: Node, h: Heads, p: Places, more: tuple[Operand, ...], since: int) -> str:
    """``Attention`` where it takes what the op asks for, else products and a softmax."""
    g, (sinks, slopes, index, bias) = low.g, more
    asks = {"sinks": sinks, "slopes": slopes, "index": index, "bias": bias, "softcap": n.attrs["softcap"]}
    beyond = [name for name, x in asks.items() if x is not None]
    if low.style.attention == "op" and not beyond:
        out = _op(low, n, h, mask(g, p, h.t.plain, n.attrs["window"], n.attrs["chunk"]))
    else:
        if beyond:
            low.note(f"attention as products and a softmax: Attention has no {', '.join(beyond)}")
        else:
            low.note("attention as products and a softmax: few queries share their keys faster so")
        out = _products(low, n, h, p, more, since)
    return packed(g, out, n.results[0].type.dims)


def _op(low: Lowering, n: Node, h: Heads, added: str) -> str:
    g, scale = low.g, n.attrs["scale"]
    q = g.transpose(padded(g, h.q), 0, 2, 1, 3)
    out = g("Attention", q, h.k, h.v, added, scale=scale)
    return g.transpose(out, 0, 2, 1, 3)


def _products(low: Lowering, n: Node, h: Heads, p: Places, more: tuple[Operand, ...], since: int) -> str:
    """Queries that share a KV head are rows of one product; scores are [B, KV, N * G, L]."""
    g, (sinks, slopes, index, bias) = low.g, more
    scale, cap, elem, size = n.attrs["scale"], n.attrs["softcap"], h.t.plain, _int(h.t.dims[2])
    assert isinstance(scale, (int, float))
    q = g("Mul", h.q, g.constant(float(scale), elem)) if scale != 1 else h.q
    heads = g("Reshape", padded(g, q), g.ints(0, 0, h.kv, h.groups, size))
    rows = g("Reshape", g.transpose(heads, 0, 2, 1, 3, 4), g.ints(0, h.kv, -1, size))
    scores = g("MatMul", rows, g.transpose(h.k, 0, 1, 3, 2))
    length = g.once(("length", p), lambda: g("Shape", p.key))
    width = g.once("width", lambda: g("Shape", g.given("pad"), start=1, end=2))
    apart = g.once(
        ("apart", h.kv, h.groups, p),
        lambda: g("Concat", g.ints(0, h.kv), width, g.ints(h.groups), length, axis=0),
    )
    scores = g("Reshape", scores, apart)
    if isinstance(cap, (int, float)):
        scores = squeezed(g, scores, cap, elem)
    if slopes is not None:
        back = g.once(("back", p), lambda: g("Cast", g("Sub", p.key, p.at), to=F32))
        per = g("Reshape", g.cast(slopes, _type(n, since + 1).plain, F32), g.ints(1, h.kv, 1, h.groups, 1))
        scores = g("Add", scores, g.cast(g("Mul", per, g("Unsqueeze", back, g.ints(3))), F32, elem))
    if bias is not None:
        scores = g("Add", scores, _bias(low, n, h, p, bias, since + 3))
    seen_ = mask(g, p, elem, n.attrs["window"], n.attrs["chunk"])
    scores = g("Add", scores, g.once(("mask5", seen_), lambda: g("Unsqueeze", seen_, g.ints(3))))
    if index is not None:
        scores = g("Where", _chosen(low, n, p, index, since + 2), scores, g.constant(NEVER, elem))
    weights = _softmax(low, n, h, scores, sinks, since)
    if index is not None:
        weights = g("Where", g("IsNaN", weights), g.constant(0.0, elem), weights)  # where nothing is seen
    together = g.once(("together", h.kv, p), lambda: g("Concat", g.ints(0, h.kv, -1), length, axis=0))
    out = g("MatMul", g("Reshape", weights, together), h.v)
    out = g("Reshape", out, g.ints(0, h.kv, -1, h.groups, h.values))
    return g.transpose(out, 0, 2, 1, 3, 4)


def _chosen(low: Lowering, n: Node, p: Places, index: str, at: int) -> str:
    """Which keys an index leaves, bool [B, 1 or KV, N, 1, L]."""
    from .sparse import chosen

    g, t, block = low.g, _type(n, at), n.attrs["block"]
    assert isinstance(block, int)
    left = chosen(g, p, g.cast(index, t.plain, I32), t, block)
    return g(
        "Unsqueeze",
        left if t.rank == 2 else g.transpose(left, 0, 2, 1, 3),
        g.ints(*((1, 3) if t.rank == 2 else (3,))),
    )


def _softmax(low: Lowering, n: Node, h: Heads, scores: str, sinks: Operand, since: int) -> str:
    """Weights of scores [B, KV, N, G, L]; a sink takes part, and gives nothing."""
    g, elem = low.g, h.t.plain
    if sinks is None:
        return g("Softmax", scores, axis=-1)
    given = _type(n, since)
    sinks = g.cast(sinks, given.plain, elem)
    if given.rank == 1:
        per = g("Reshape", sinks, g.ints(1, h.kv, 1, h.groups, 1))
    else:
        per = g("Reshape", padded(g, sinks), g.ints(0, 0, h.kv, h.groups, 1))
        per = g.transpose(per, 0, 2, 1, 3, 4)
    like = g("Shape", g("ReduceMax", scores, g.ints(-1), keepdims=1))
    joined = g("Softmax", g("Concat", scores, g("Expand", per, like), axis=-1), axis=-1)
    return g("Slice", joined, g.ints(0), g.ints(-1), g.ints(4))


def _bias(low: Lowering, n: Node, h: Heads, p: Places, bias: str, at: int) -> str:
    """What a token adds for the key so many tokens back, [B, KV, N, G, L]; 0 past the last that is given."""
    g, t = low.g, _type(n, at)
    reach, elem = _int(t.dims[2]), h.t.plain
    near = g("Reshape", padded(g, g.cast(bias, t.plain, elem)), g.ints(0, 0, h.kv, h.groups, reach))
    near = g.transpose(near, 0, 2, 1, 3, 4)

    def back() -> tuple[str, str]:
        ago = g("Unsqueeze", g("Sub", p.at, p.key), g.ints(3))
        inside = g("Less", ago, g.constant(reach, I32))
        place = g("Clip", ago, g.constant(0, I32), g.constant(reach - 1, I32))
        return inside, g("Cast", place, to=I64)

    inside, place = g.once(("ago", p, reach), back)
    like = g("Concat", g("Shape", near, start=0, end=4), g("Shape", p.key), axis=0)
    found = g("GatherElements", near, g("Expand", place, like), axis=4)
    return g("Where", inside, found, g.constant(0.0, elem))
