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
from irloom.ir.elem import ELEMS, Paged
from irloom.ir.graph import Node, Value
from irloom.ir.ops.attention import default_frequencies
from irloom.ir.types import Type

from .elementwise import squeezed
from .graph import Graph
from .lower import Lowering, Operand, lowers
from .masks import Extra, Places, places, scores_added
from .slots import Cache, packed, padded

F32, I64 = ELEMS["f32"], ELEMS["i64"]


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
        place = g.once(("place", positions), lambda: g("Cast", positions, to=F32))
        at = g("Unsqueeze", place, g.ints(0, 2))
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
    assert isinstance(elem, Paged)
    news = [(k, _type(n, 1)), *([(v, _type(n, 2))] if v else [])]
    rows, past = g.once(("rows to append", elem.stride), lambda: _appended(g, elem.stride))
    made: list[str] = []
    for old, (new, of) in zip(cache.names, news, strict=True):
        slots = g("Gather", g.cast(new, of.plain, elem.elem), rows, axis=0)
        made.append(g("TensorScatter", old, g.transpose(slots, 0, 2, 1, 3), past, axis=2))
    return Cache(tuple(made))


def _appended(g: Graph, stride: int) -> tuple[str, str]:
    """Which rows [B, entries] of a step become entries of a cache, and the first entry of each slot, i64[B].

    With a stride those are the last rows of so many tokens; of a slot that completes fewer entries than
    others, some row stands for each that is missing, and is written over once that is complete.
    """
    past = g("Cast", g.given("past"), to=I64)
    if stride == 1:
        return g.given("pad"), past
    size, one = g.constant(stride, I64), g.constant(1, I64)
    entry = g("Div", past, size)
    width = g.scalar(g("Shape", g.given("pad"), start=1, end=2))
    most = g("Div", g("Add", width, g.constant(stride - 1, I64)), size)
    entries = g("Add", g("Unsqueeze", entry, g.ints(1)), g("Range", g.constant(0, I64), most, one))
    ends = g("Sub", g("Mul", g("Add", entries, one), size), one)
    places = g("Sub", ends, g("Unsqueeze", past, g.ints(1)))
    inside = g("Clip", places, g.constant(0, I64), g("Sub", width, one))
    return g("GatherElements", g.given("pad"), inside, axis=1), entry


@dataclass(frozen=True)
class Heads:
    """Queries [T, H, size] over keys and values [B, KV, L, ...] of slots."""

    q: str
    t: Type
    k: str
    v: str
    kv: int
    values: int

    @property
    def count(self) -> int:
        """Query heads."""
        return _int(self.t.dims[1])


def heads_of(low: Lowering, n: Node, q: str, cache: Cache) -> Heads:
    """Queries over the whole cache of each slot, as long as the step makes it."""
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
    return Heads(q, x, k, v, kv, values)


def heads_alone(low: Lowering, n: Node, q: str, k: str, v: str, stride: int = 1) -> Heads:
    """Queries over the tokens of the step alone: in a program without caches."""
    g, t = low.g, _type(n, 1)
    keys, values = (g.transpose(padded(g, x), 0, 2, 1, 3) for x in (k, v))
    if stride != 1:
        ends = g.ints(stride - 1), g.ints(2**63 - 1), g.ints(2), g.ints(stride)
        keys, values = (g("Slice", x, *ends) for x in (keys, values))
    return Heads(q, _type(n, 0), keys, values, _int(t.dims[1]), _int(_type(n, 2).dims[2]))


@lowers("paged_attention")
def paged_attention(low: Lowering, n: Node, q: str, cache: Cache, seqs: None, *more: Operand) -> str:
    """Over the whole cache of each slot."""
    return attend(low, n, heads_of(low, n, q, cache), places(low.g, cache.k, cached=True), more)


@lowers("attention")
def attention(low: Lowering, n: Node, q: str, k: str, v: str, seqs: None, *more: Operand) -> str:
    """Over the tokens of the step alone."""
    heads = heads_alone(low, n, q, k, v)
    return attend(low, n, heads, places(low.g, heads.k, cached=False), more)


def attend(low: Lowering, n: Node, h: Heads, p: Places, more: tuple[Operand, ...]) -> str:
    """``Attention``, with what is added to scores as its mask; products and a softmax where there are sinks.

    ``more`` are sinks, slopes, index and bias, the last operands.
    """
    g, (sinks, slopes, index, bias) = low.g, more
    types = dict(zip(n.op.operands, (a.type if isinstance(a, Value) else None for a in n.args), strict=False))
    extra = Extra(h.count, types, slopes, index, bias)
    added = scores_added(g, p, h.t.plain, n.attrs, extra)
    if low.style.attention == "op" and sinks is None:
        caps = {} if n.attrs["softcap"] is None else {"softcap": n.attrs["softcap"]}
        how: dict[str, Any] = {"scale": n.attrs["scale"], **caps}
        q = g.transpose(padded(g, h.q), 0, 2, 1, 3)
        out = g.transpose(g("Attention", q, h.k, h.v, added, **how), 0, 2, 1, 3)
    else:
        why = (
            "in which queries share the keys that they read"
            if sinks is None
            else "for the operator has no sinks"
        )
        low.note(f"as products and a softmax, {why}")
        out = _products(low, n, h, p, added, sinks, types.get("sinks"))
        out = g("Where", g("IsNaN", out), g.constant(0.0, h.t.plain), out) if index is not None else out
    return packed(g, out, n.results[0].type.dims)


def _products(
    low: Lowering, n: Node, h: Heads, p: Places, added: str, sinks: Operand, of_sinks: Type | None
) -> str:
    """What is attended to [B, N, H, values]."""
    scores = scored(low, n, h, p, added)
    return mixed(low.g, h, p, _softmax(low.g, h, scores, sinks, of_sinks))


def scored(low: Lowering, n: Node, h: Heads, p: Places, added: str) -> str:
    """Scores [B, H, N, L] and what is added to them; queries that share a KV head are rows of one product."""
    g, elem, size = low.g, h.t.plain, _int(h.t.dims[2])
    scale, cap = n.attrs["scale"], n.attrs.get("softcap")
    assert isinstance(scale, (int, float))
    q = g("Mul", h.q, g.constant(float(scale), elem)) if scale != 1 else h.q
    rows = g("Reshape", g.transpose(padded(g, q), 0, 2, 1, 3), g.ints(0, h.kv, -1, size))
    width, length = _lengths(g, p)
    apart = g.once(("apart", h.count, p), lambda: g("Concat", g.ints(0, h.count), width, length, axis=0))
    scores = g("Reshape", g("MatMul", rows, g.transpose(h.k, 0, 1, 3, 2)), apart)
    if isinstance(cap, (int, float)):
        scores = squeezed(g, scores, cap, elem)
    return g("Add", scores, added)


def mixed(g: Graph, h: Heads, p: Places, weights: str) -> str:
    """Values by their weights [B, H, N, L]: [B, N, H, values]."""
    width, length = _lengths(g, p)
    together = g.once(("together", h.kv, p), lambda: g("Concat", g.ints(0, h.kv, -1), length, axis=0))
    out = g("MatMul", g("Reshape", weights, together), h.v)
    parts = g.once(
        ("parts", h.count, h.values),
        lambda: g("Concat", g.ints(0, h.count), width, g.ints(h.values), axis=0),
    )
    return g.transpose(g("Reshape", out, parts), 0, 2, 1, 3)


def _lengths(g: Graph, p: Places) -> tuple[str, str]:
    """How many tokens a slot has, and how many keys, as lists of one."""
    width = g.once("width", lambda: g("Shape", g.given("pad"), start=1, end=2))
    return width, g.once(("length", p), lambda: g("Shape", p.key))


def _softmax(g: Graph, h: Heads, scores: str, sinks: Operand, t: Type | None) -> str:
    """Weights of scores [B, H, N, L]; a sink takes part, and gives nothing."""
    if sinks is None:
        return g("Softmax", scores, axis=-1)
    assert t is not None
    own = g.cast(sinks, t.plain, h.t.plain)
    if t.rank == 1:
        per = g("Reshape", own, g.ints(1, h.count, 1, 1))
    else:
        per = g("Unsqueeze", g.transpose(padded(g, own), 0, 2, 1), g.ints(3))
    like = g("Concat", g("Shape", scores, start=0, end=3), g.ints(1), axis=0)
    joined = g("Softmax", g("Concat", scores, g("Expand", per, like), axis=-1), axis=-1)
    return g("Slice", joined, g.ints(0), g.ints(-1), g.ints(3))
