"""How a choice of keys becomes ONNX operators: scores of all keys, and the highest of them."""

from __future__ import annotations

from irloom.ir.elem import ELEMS, Paged
from irloom.ir.graph import Node, Value
from irloom.ir.types import Type

from .graph import Graph
from .lower import Lowering, lowers
from .masks import Places, places
from .slots import Cache, packed, padded

F32, I32, I64 = (ELEMS[e] for e in ("f32", "i32", "i64"))
NEVER, ALWAYS = float("-inf"), float("inf")


def _type(n: Node, at: int) -> Type:
    a = n.args[at]
    assert isinstance(a, Value)
    return a.type


def _attr(n: Node, name: str) -> int:
    value = n.attrs.get(name, 1)
    assert isinstance(value, int)
    return value


@lowers("sparse_index", "paged_sparse_index")
def sparse_index(low: Lowering, n: Node, q: str, k: str | Cache, weight: str, seqs: None) -> str:
    """Scores of heads, weighted and summed, and the best keys."""
    g, (scores, p) = low.g, _scores(low, n, q, k)
    by_head = padded(g, g.cast(weight, _type(n, 2).plain, F32))
    summed = g("MatMul", g("Unsqueeze", by_head, g.ints(2)), g("Relu", scores))
    seen = g("LessOrEqual", p.key, g("Squeeze", p.at, g.ints(1)))
    limited = g("Where", seen, g("Squeeze", summed, g.ints(2)), g.constant(NEVER, F32))
    return packed(g, _best(g, limited, _attr(n, "topk")), n.results[0].type.dims)


@lowers("block_index", "paged_block_index")
def block_index(low: Lowering, n: Node, q: str, k: str | Cache, seqs: None) -> str:
    """The highest score of each block, and the best blocks of each head."""
    g, (scores, p) = low.g, _scores(low, n, q, k)
    block, local = _attr(n, "block"), _attr(n, "local")
    size, never = g.constant(block, I32), g.constant(NEVER, F32)
    at = g.transpose(p.at, 0, 2, 1, 3)
    seen = g("Where", g("LessOrEqual", p.key, at), scores, never)
    short = g("Neg", g("Shape", p.key))
    filled = g("Concat", g.ints(0), g("Mod", short, g.ints(block)), axis=0)
    whole = g("Pad", seen, filled, never, g.ints(3))
    best = g("ReduceMax", g("Reshape", whole, g.ints(0, 0, 0, -1, block)), g.ints(4), keepdims=0)
    count = g("Cast", g.scalar(g("Shape", best, start=3, end=4)), to=I32)
    numbers = g("Range", g.constant(0, I32), count, g.constant(1, I32))
    behind = g("Sub", g("Div", at, size), numbers)
    near = g(
        "And", g("GreaterOrEqual", behind, g.constant(0, I32)), g("Less", behind, g.constant(local, I32))
    )
    first = g("Where", near, g.constant(ALWAYS, F32), best) if local else best
    return packed(g, _best(g, first, _attr(n, "topk")), n.results[0].type.dims)


def _scores(low: Lowering, n: Node, q: str, k: str | Cache) -> tuple[str, Places]:
    """Products of queries and keys, f32 [B, N, H, L], and where tokens and keys stand."""
    g = low.g
    if isinstance(k, Cache):
        elem = _type(n, 1).elem
        assert isinstance(elem, Paged)
        keys, p = g.cast(k.k, elem.elem, F32), places(g, k.k, cached=True, stride=elem.stride)
    else:
        keys = g.transpose(padded(g, g.cast(k, _type(n, 1).plain, F32)), 0, 2, 1, 3)
        stride = _attr(n, "stride")
        if stride != 1:
            keys = g("Slice", keys, g.ints(stride - 1), g.ints(2**63 - 1), g.ints(2), g.ints(stride))
        p = places(g, keys, cached=False, stride=stride)
    slots = padded(g, g.cast(q, _type(n, 0).plain, F32))
    return g("MatMul", slots, g.transpose(keys, 0, 1, 3, 2)), p


def _best(g: Graph, scores: str, topk: int) -> str:
    """The places i32[..., topk] of the highest scores, -1 where there are fewer above -inf."""
    count = g("Min", g.ints(topk), g("Shape", scores, start=-1))
    values, index = g.several("TopK", scores, count, outputs=2, axis=-1)
    none = g.constant(-1, I64)
    found = g("Where", g("Equal", values, g.constant(NEVER, F32)), none, index)
    missing = g("Concat", g.ints(0), g("Sub", g.ints(topk), count), axis=0)
    return g("Cast", g("Pad", found, missing, none, g.ints(-1)), to=I32)
