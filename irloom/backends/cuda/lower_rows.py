"""Lowering of what is done row by row: norms, gates, embeddings, positions, and attention with its caches."""

from __future__ import annotations

from irloom.ir.elem import Paged
from irloom.ir.graph import Arg, Node, Value

from .lower import Lowering, Prologue, lowers
from .lower_elementwise import GATES, elementwise, gate_of


@lowers("rms_norm")
def rms_norm(f: Lowering, n: Node) -> bool:
    """In the product that alone reads it, or a kernel."""
    if not _fixed(f, n):
        return False
    x, weight = [*n.args, None][:2]
    eps, groups = n.attrs["eps"], n.attrs.get("groups", 1)
    assert isinstance(eps, float)
    if groups != 1:
        return f.launch("rms_norm", n, x, weight, attrs=n.attrs)
    if f.rows(x) and _folds(f, n.result):
        return f.prologue(n.result, Prologue(x, weight, eps))
    return f.launch("rms_norm", n, x, weight, attrs={"eps": eps})


def _fixed(f: Lowering, n: Node) -> bool:
    """Whether no kernel makes a norm's weights: they are read while the kernel in front is still running."""
    rows = 1 if n.op.name in ("rms_norm", "layer_norm", "l2_norm") else 2
    return f.unmade(n.args[rows:]) or f.decline(n, "a weight that is computed")


def _folds(f: Lowering, normed: Value) -> bool:
    """Whether a product makes this norm itself, or the rounding that alone reads it takes it along."""
    if f.product_reading(normed):
        return True
    reader = f.only_reader(normed)
    return reader is not None and reader.op.name == "quantize"


@lowers("add_rms_norm")
def add_rms_norm(f: Lowering, n: Node) -> bool:
    """The sum is the product's in front, where that could take it; the norm then is as any other."""
    if not _fixed(f, n):
        return False
    x, y, weight, inner = [*n.args, None, None][:4]
    total, normed = n.results
    eps = n.attrs["eps"]
    assert isinstance(eps, float)
    if id(n) not in f.summed:
        return f.launch("add_rms_norm", n, x, y, weight, inner, attrs=n.attrs)
    if f.rows(total) and _folds(f, normed):
        return f.prologue(normed, Prologue(total, weight, eps))
    return f.launch("rms_norm", n, total, weight, results=[normed], attrs={"eps": eps})


@lowers("rms_norm_add", "layer_norm", "add_layer_norm", "l2_norm")
def norm(f: Lowering, n: Node) -> bool:
    """A kernel of the op's own name."""
    return _fixed(f, n) and f.launch(n.op.name, n, *n.args, attrs=n.attrs)


@lowers(*GATES)
def act_mul(f: Lowering, n: Node) -> bool:
    """A gate that no product takes along; one of other dims than what it lets through begins a chain."""
    gate, up = n.args[:2]
    if not (isinstance(gate, Value) and isinstance(up, Value) and gate.type.dims == up.type.dims):
        return elementwise(f, n)
    return f.launch("act_mul", n, gate, up, attrs={"act": gate_of(n)})


@lowers("embedding")
def embedding(f: Lowering, n: Node) -> bool:
    return f.launch("embedding", n, *n.args[:2])


@lowers("positions")
def positions(f: Lowering, n: Node) -> bool:
    return f.launch("positions", n, *n.args)


@lowers("last_rows")
def last_rows(f: Lowering, n: Node) -> bool:
    return f.launch("last_rows", n, *n.args)


@lowers("rope")
def rope(f: Lowering, n: Node) -> bool:
    return f.launch("rope", n, *_all(n, 3), attrs=n.attrs)


@lowers("rope_append")
def rope_append(f: Lowering, n: Node) -> bool:
    """Along with the attention that alone reads the queries and sees the keys, or a kernel."""
    q, k, v, cache, _, seqs, *weights = _all(n, 9)
    if not _keeps_all(cache):
        return f.decline(n, f"cache {cache}")
    read = f.only_reader(n.results[0])
    if read is not None and v is not None and _follows(f, n, read) and f.unmade(weights):
        f.folded.add(id(read))
        turn = {"turn" if k == "scale" else k: x for k, x in n.attrs.items()}
        attrs = turn | {k: x for k, x in read.attrs.items() if k not in ("block", "values")}
        args = (q, k, v, cache, seqs, *weights, *_all(read, 5)[3:])
        made = (read.result, n.results[1])
        return f.launch("rope_attention", n, *args, results=made, given=("work",), attrs=attrs)
    return f.launch("rope_append", n, q, k, v, cache, seqs, *weights, attrs=n.attrs)


@lowers("kv_append")
def kv_append(f: Lowering, n: Node) -> bool:
    return f.launch("kv_append", n, *n.args)


@lowers("paged_attention")
def paged_attention(f: Lowering, n: Node) -> bool:
    """Attention to all keys that a window leaves; not to chosen ones, nor with a bias of its own."""
    q, cache, seqs, sinks, slopes, index, bias = _all(n, 7)
    if index is not None or bias is not None or not _keeps_all(cache):
        return f.decline(n, "chosen keys, a bias, or a cache with a stride")
    if isinstance(sinks, Value) and sinks.type.rank != 1:
        return f.decline(n, f"sinks {sinks.type}")
    attrs = {k: v for k, v in n.attrs.items() if k != "block"}
    return f.launch("paged_attention", n, q, cache, seqs, sinks, slopes, given=("work",), attrs=attrs)


def _follows(f: Lowering, n: Node, read: Node) -> bool:
    """Whether ``read`` attends with the queries of ``n`` to the cache it renews, by what is there before."""
    if read.op.name != "paged_attention" or list(read.args[:2]) != list(n.results):
        return False
    _, _, _, sinks, slopes, index, bias = _all(read, 7)
    whole = index is None and bias is None and read.attrs.get("values") is None
    vector = not isinstance(sinks, Value) or sinks.type.rank == 1
    return whole and vector and f.there(sinks, n) and f.unmade([slopes])


def _keeps_all(cache: object) -> bool:
    return isinstance(cache, Value) and isinstance(cache.type.elem, Paged) and cache.type.elem.stride == 1


def _all(n: Node, count: int) -> list[Arg]:
    """A node's operands, with those left out."""
    return [*n.args, *[None] * count][:count]
