"""Lowering of recurrences: kernels that go on from the states of a cache, and renew them in place.

Kernels compute in f32, and so take what a cast to f32 is made of, and write what their result is cast to. Of
what else stands in front and behind they take along what is cheaper so: the activation of a convolution; of
Mamba-2 the rate's ``softplus`` and the skip; of the delta rule the norm of queries and keys, and that some
heads share them.
"""

from __future__ import annotations

from irloom.ir.elem import SEQS, Cached
from irloom.ir.graph import Arg, Node, Value

from .lower import Lowering, floats, lowers
from .unread import drop

SCANS = ("carried_token_shift", "carried_linear_scan", "carried_selective_scan", "carried_wkv")
MATRICES = ("carried_gated_linear_attention", "carried_mlstm")


@lowers("carried_causal_conv")
def causal_conv(f: Lowering, n: Node) -> bool:
    """With the activation that alone reads its result."""
    x, weight, seqs, cache, bias = [*n.args, None][:5]
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    y, renewed = n.results
    act = f.only_reader(y)
    if act is None or act.op.name != "silu" or act.result.type != y.type:
        return f.launch(n.op.name, n, x, weight, cache, seqs, bias)
    f.folded.add(id(act))
    results = [act.result, renewed]
    return f.launch(n.op.name, n, x, weight, cache, seqs, bias, results=results, attrs={"act": "silu"})


@lowers(*SCANS)
def scan(f: Lowering, n: Node) -> bool:
    """A state whose entries do not mix."""
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    *given, seqs, cache = n.args
    read = [_uncast(f, a) for a in given]
    drop(f, n, given, read)
    return f.launch(n.op.name, n, *read, cache, seqs, results=_results(f, n))


@lowers(*MATRICES)
def matrix(f: Lowering, n: Node) -> bool:
    """A state that maps keys to values."""
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    *given, seqs, cache = n.args
    read = [_uncast(f, a) for a in given]
    drop(f, n, given, read)
    results = _results(f, n)
    return f.launch(n.op.name, n, *read, cache, seqs, results=results, attrs=n.attrs, given=("work",))


@lowers("carried_ssd_scan")
def ssd_scan(f: Lowering, n: Node) -> bool:
    """Mamba-2, with the ``softplus`` that makes its rates, and what skips the state."""
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    *given, seqs, cache = n.args
    x, dt, a, b, c = [_uncast(f, v) for v in given]
    rate, bias, soft = _rate(f, dt)
    total, skip, product = _skip(f, n, x)
    read = [x, rate, a, b, c]
    drop(f, n, [*given, product], [*read, bias, skip])
    more = {"results": _results(f, n, total), "attrs": {"soft": True} if soft else {}, "given": ("work",)}
    return f.launch(n.op.name, n, *read, cache, seqs, bias, skip, **more)


def _rate(f: Lowering, dt: Arg) -> tuple[Arg, Arg, bool]:
    """What ``dt`` is made of: ``softplus(rate + bias)``, or itself."""
    plus = _made_by(f, dt, "softplus")
    if plus is None:
        return dt, None, False
    inner = _uncast(f, plus.args[0])
    total = _made_by(f, inner, "add")
    for rate, bias in (total.args, total.args[::-1]) if total else ():
        if not isinstance(rate, Value) or not isinstance(bias, Value) or rate.type.rank != 2:
            continue
        if f.is_weight(bias) and floats(bias) and bias.type.dims == rate.type.dims[1:]:
            return _uncast(f, rate), bias, True
    return inner, None, True


def _skip(f: Lowering, n: Node, x: Arg) -> tuple[Value, Arg, Arg]:
    """The sum that alone reads the result, with ``x`` times a weight per head; that weight; the product."""
    y = n.results[0]
    total = f.only_reader(y)
    if total is None or total.op.name != "add" or total.result.type.dims != y.type.dims:
        return y, None, None
    other = total.args[1] if total.args[0] is y else total.args[0]
    product = _made_by(f, other, "mul")
    if product is None or f.only_reader(product.result) is not total or not floats(total.result):
        return y, None, None
    for again, skip in (product.args, product.args[::-1]):
        if not isinstance(skip, Value) or not f.is_weight(skip) or not floats(skip):
            continue
        if skip.type.dims[-2:] == (y.type.dims[1], 1) and _uncast(f, again) is x:
            f.folded.update((id(total), id(product)))
            return total.result, skip, product.result
    return y, None, None


@lowers("carried_gated_delta")
def gated_delta(f: Lowering, n: Node) -> bool:
    """The delta rule, on queries and keys as they are before they are normed and repeated."""
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    *given, seqs, cache = n.args
    read = [_uncast(f, v) for v in given]
    (q, q_eps, scale, q_shared), (k, k_eps, other, k_shared) = (_direction(f, v) for v in given[:2])
    attrs: dict[str, float] = {}
    if q_eps is not None and q_eps == k_eps and other == 1.0 and q_shared == k_shared:
        read[:2] = q, k
        attrs = {"unit": q_eps, "scale": scale}
    drop(f, n, given, read)
    return f.launch(n.op.name, n, *read, cache, seqs, results=_results(f, n), attrs=attrs, given=("work",))


def _direction(f: Lowering, v: Arg) -> tuple[Arg, float | None, float, int]:
    """What queries or keys are made of: vectors that are brought to length 1 (with which ``eps``), times a
    number, each head repeated so often.
    """
    scale, shared = 1.0, 1
    while True:
        v = _uncast(f, v)
        if (once := _unrepeated(f, v)) is not None and shared == 1:
            v, shared = once
        elif (n := _made_by(f, v, "mul")) is not None and isinstance(n.args[1], (int, float)):
            v, scale = n.args[0], scale * n.args[1]
        else:
            break
    norm = _made_by(f, v, "l2_norm")
    if norm is None:
        return v, None, scale, shared
    eps, v = norm.attrs["eps"], _uncast(f, norm.args[0])
    assert isinstance(eps, float)
    if shared == 1 and (once := _unrepeated(f, v)) is not None:
        v, shared = once
    return v, eps, scale, shared


def _unrepeated(f: Lowering, v: Arg) -> tuple[Value, int] | None:
    """The value [T, heads, k], or [T, heads * k], of which ``v`` has each head ``r`` times; and ``r``."""
    flat = _made_by(f, v, "reshape")
    turned = _made_by(f, flat.args[0], "permute") if flat else None
    many = _made_by(f, turned.args[0], "concat") if turned else None
    if flat is None or turned is None or many is None or tuple(turned.attrs["dims"]) != (0, 1, 3, 2):  # type: ignore[arg-type]
        return None
    one = _made_by(f, many.args[0], "reshape")
    x = one.args[0] if one else None
    if many.attrs["dim"] not in (-1, 3) or len(set(map(id, many.args))) > 1 or not isinstance(x, Value):
        return None
    if one is None or one.result.type.rank != 4:
        return None
    tokens, heads, keys, last = one.result.type.dims
    if last != 1 or x.type.dims not in ((tokens, heads, keys), (tokens, heads * keys)):
        return None
    made = (tokens, heads * len(many.args), keys)
    return (x, len(many.args)) if flat.result.type.dims == made else None


def _results(f: Lowering, n: Node, y: Value | None = None) -> list[Value]:
    """What a launch writes: ``y``, or what that is only there to be cast to; and the states."""
    made = y or n.results[0]
    cast = f.only_reader(made)
    if cast is not None and cast.op.name == "cast" and floats(cast.result):
        f.folded.add(id(cast))
        made = cast.result
    return [made, n.results[1]]


def _made_by(f: Lowering, v: Arg, op: str) -> Node | None:
    """The node of this op that makes ``v``."""
    n = f.producers.get(v) if isinstance(v, Value) else None
    return n if isinstance(n, Node) and n.op.name == op else None


def _uncast(f: Lowering, a: Arg) -> Arg:
    """What ``a`` is, or is a cast to f32 of: not where a chain makes the cast, and what it casts nowhere."""
    n = _made_by(f, a, "cast")
    if n is None or id(n) in f.folded or not isinstance(a, Value) or a.type.plain.name != "f32":
        return a
    x = n.args[0]
    return x if isinstance(x, Value) and floats(x) and x not in f.prologues else a


def _runs(n: Node) -> bool:
    """Whether all tensors are of floats, states too."""
    for v in n.values:
        if isinstance(v.type.elem, Cached):
            if v.type.elem.elem.name not in ("bf16", "f16", "f32"):
                return False
        elif v.type.elem != SEQS and not floats(v):
            return False
    return True
