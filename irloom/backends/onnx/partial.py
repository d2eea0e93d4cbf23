"""How attention over part of what a token sees becomes ONNX operators, and the pooling of blocks of tokens.

Both are pieces of compressed attention, in which one key stands for several tokens.
"""

from __future__ import annotations

from irloom.ir.elem import ELEMS
from irloom.ir.graph import Node, Value

from .attention import Heads, heads_alone, heads_of, mixed, scored
from .graph import Graph
from .lower import Lowering, Operand, lowers
from .masks import Extra, Places, places, scores_added
from .recurrent import Recurrence
from .slots import Cache, packed, padded

F32, I32, I64 = (ELEMS[e] for e in ("f32", "i32", "i64"))
NEVER, LEAST = float("-inf"), -1e30


@lowers("paged_partial_attention")
def paged_partial_attention(
    low: Lowering, n: Node, q: str, cache: Cache, seqs: None, sinks: Operand, index: Operand
) -> tuple[str, str]:
    """Over the keys in the cache of each slot."""
    stride = n.attrs["stride"]
    assert isinstance(stride, int)
    p = places(low.g, cache.k, cached=True, stride=stride)
    return _partial(low, n, heads_of(low, n, q, cache), p, sinks, index)


@lowers("partial_attention")
def partial_attention(
    low: Lowering, n: Node, q: str, k: str, v: str, seqs: None, sinks: Operand, index: Operand
) -> tuple[str, str]:
    """Over the keys of the step alone."""
    stride = n.attrs["stride"]
    assert isinstance(stride, int)
    heads = heads_alone(low, n, q, k, v, stride)
    return _partial(low, n, heads, places(low.g, heads.k, cached=False, stride=stride), sinks, index)


def _partial(low: Lowering, n: Node, h: Heads, p: Places, sinks: Operand, index: Operand) -> tuple[str, str]:
    """What is attended to, and the logarithm of the sum of weights; -inf where nothing is seen. In f32."""
    g, elem = low.g, h.t.plain
    types = dict(zip(n.op.operands, (a.type if isinstance(a, Value) else None for a in n.args), strict=False))
    attrs = {"chunk": None, "block": 1, **n.attrs}
    added = scores_added(g, p, elem, attrs, Extra(h.count, types, None, index, None))
    scores = g.cast(scored(low, n, h, p, added), elem, F32)
    sink = g.constant(NEVER, F32)
    if sinks is not None and (t := types["sinks"]) is not None:
        sink = g("Reshape", g.cast(sinks, t.plain, F32), g.ints(1, h.count, 1, 1))
    most = g("Max", g("ReduceMax", scores, g.ints(-1), keepdims=1), sink, g.constant(LEAST, F32))
    shares = g("Exp", g("Sub", scores, most))
    total = g("Add", g("ReduceSum", shares, g.ints(-1), keepdims=1), g("Exp", g("Sub", sink, most)))
    none = g("Equal", total, g.constant(0.0, F32))
    weights = g("Div", shares, g("Where", none, g.constant(1.0, F32), total))
    out = mixed(g, h, p, g.cast(weights, F32, elem))
    logs = g("Where", none, g.constant(NEVER, F32), g("Add", g("Log", total), most))
    by_row = g.transpose(g("Squeeze", logs, g.ints(3)), 0, 2, 1)
    low.note("as products and a softmax, whose sum is asked for")
    return packed(g, out, n.results[0].type.dims), packed(g, by_row, n.results[1].type.dims)


@lowers("block_pool", "carried_block_pool")
def block_pool(low: Lowering, n: Node, *given: Operand) -> Operand:
    """Every token with the rows behind it, of which those at the end of a block count."""
    g, r = low.g, Recurrence(low, n, given)
    size, series, _ = r.type(2).dims
    assert isinstance(size, int) and isinstance(series, int)
    own = g("Concat", *(g("Unsqueeze", r.slots(i), g.ints(2)) for i in (0, 1)), axis=2)
    seen = g("Concat", r.before(F32), own, axis=1)
    at = padded(g, g.cast(r.operands[3], r.type(3).plain, I64))
    bias = g.cast(r.operands[2], r.type(2).plain, F32)
    x, gate = (_windows(g, seen, part, size, series) for part in (0, 1))
    late = [g("Gather", bias, g.constant(series - 1 - j, I64), axis=1) for j in range(series)]
    gate = g("Add", gate, g("Concat", *late, axis=0))
    places = g("Range", g.constant(0, I64), g.constant(size * series, I64), g.constant(1, I64))
    first = g("Sub", g.constant(size * series - 1, I64), g("Unsqueeze", at, g.ints(2)))
    before = g("Unsqueeze", g("Less", places, first), g.ints(3))
    weights = g("Softmax", g("Where", before, g.constant(NEVER, F32), gate), axis=2)
    pooled = g("ReduceSum", g("Mul", weights, x), g.ints(2), keepdims=0)
    block, one = g.constant(size, I64), g.constant(1, I64)
    ends = g("Equal", g("Mod", g("Add", at, one), block), g.constant(0, I64))
    y = g("Where", g("Unsqueeze", ends, g.ints(2)), pooled, g.constant(0.0, F32))
    return r.done(y, r.last(seen, 1), F32)


def _windows(g: Graph, seen: str, part: int, size: int, series: int) -> str:
    """Of each token the rows of the blocks that end with it, each in its series: [B, N, rows, c]."""
    own = g("Gather", seen, g.constant(part, I64), axis=2)
    width = g.scalar(g("Shape", g.given("pad"), start=1, end=2))
    along = g("Unsqueeze", g("Range", g.constant(0, I64), width, g.constant(1, I64)), g.ints(1))
    rows: list[str] = []
    for j in range(series):
        places = g("Add", along, g.ints(*range(j * size, (j + 1) * size)))
        rows.append(g("Gather", g("Gather", own, g.constant(series - 1 - j, I64), axis=2), places, axis=1))
    return g("Concat", *rows, axis=2)
