"""Lowering of what is done row by row: norms, gates, embeddings, positions, and attention with its caches."""

from __future__ import annotations

from irloom.ir.elem import Paged
from irloom.ir.graph import Arg, Node, Value

from .lower import Lowering, Prologue, lowers


@lowers("rms_norm")
def rms_norm(f: Lowering, n: Node) -> bool:
    """In the product that alone reads it, or a kernel."""
    x, weight = [*n.args, None][:2]
    eps, groups = n.attrs["eps"], n.attrs.get("groups", 1)
    assert isinstance(eps, float)
    if groups != 1:
        return f.launch("rms_norm", n, x, weight, attrs=n.attrs)
    if f.rows(x) and _folds(f, n.result):
        return f.prologue(n.result, Prologue(x, weight, eps))
    return f.launch("rms_norm", n, x, weight, attrs={"eps": eps})


def _folds(f: Lowering, normed: Value) -> bool:
    """Whether a product makes this norm itself, or the rounding that alone reads it takes it along."""
    if f.product_reading(normed):
        return True
    reader = f.only_reader(normed)
    return reader is not None and reader.op.name == "quantize"


@lowers("add_rms_norm")
def add_rms_norm(f: Lowering, n: Node) -> bool:
    """The sum is the product's in front, where that could take it; the norm then is as any other."""
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
    return f.launch(n.op.name, n, *n.args, attrs=n.attrs)


@lowers("silu_mul", "gelu_mul", "act_mul")
def act_mul(f: Lowering, n: Node) -> bool:
    """A gate that no product takes along."""
    return f.launch("act_mul", n, *n.args[:2], attrs={"act": gate_of(n)})


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
    q, k, v, cache, _, seqs, *weights = _all(n, 9)
    if not _keeps_all(cache):
        return f.decline(n, f"cache {cache}")
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


def _keeps_all(cache: object) -> bool:
    return isinstance(cache, Value) and isinstance(cache.type.elem, Paged) and cache.type.elem.stride == 1


def _all(n: Node, count: int) -> list[Arg]:
    """A node's operands, with those left out."""
    return [*n.args, *[None] * count][:count]


def gate_of(n: Node) -> str:
    """The activation of a node that multiplies a gate, by its name in ``act_mul``."""
    if n.attrs.get("tanh"):
        return "gelu_tanh"
    return {"silu_mul": "silu", "gelu_mul": "gelu"}.get(n.op.name) or str(n.attrs["act"])
