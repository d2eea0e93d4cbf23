"""How each op becomes kernel calls. What an op needs beyond these forms runs its reference body instead."""

from __future__ import annotations

from irloom.backends.cpu.lower import Lowering
from irloom.backends.cpu.place import Place
from irloom.backends.cpu.program import lowers
from irloom.ir.elem import Paged
from irloom.ir.graph import Node, Param, Value


def _value(n: Node, k: int) -> Value:
    a = n.args[k]
    assert isinstance(a, Value)
    return a


def _arg(n: Node, k: int) -> object:
    return n.args[k] if len(n.args) > k else None


@lowers("positions")
def positions(f: Lowering, n: Node) -> bool:
    """The step's own array."""
    f.places[n.result] = Place("positions", n.result.type.plain, n.result.type.dims, 1)
    return True


@lowers("embedding")
def embedding(f: Lowering, n: Node) -> bool:
    """Rows of a packed table, scaled when the only reader is a product with a number."""
    ids, table = n.args
    if not f.is_weight(table) or not isinstance(ids, Value) or ids.type.plain.name != "i32":
        return False
    if not f.f32(n.result):  # a table of numbers
        return False
    scale, out = 1.0, n.result
    scaled = f.only_reader(out, "mul")
    if scaled is not None and isinstance(scaled.args[1], float):
        scale, out = scaled.args[1], scaled.result
        f.done.add(id(scaled))
        f.place_early(out, n)
    f.call("embedding", f.weight(n.args[1], "packed"), ids, _made(f, out), scale=scale, loc=n.loc)
    return True


@lowers("linear")
def linear(f: Lowering, n: Node) -> bool:
    """A product with a packed weight."""
    return _product(f, n, None, "linear")


@lowers("linear_act")
def linear_act(f: Lowering, n: Node) -> bool:
    """A product that finishes its result before it is in memory."""
    act, scale, softcap = (n.attrs[k] for k in ("act", "scale", "softcap"))
    if (act, scale, softcap) == (None, 1.0, None):
        return _product(f, n, _arg(n, 3), "linear")
    kind = {None: "identity", "gelu": "gelu_erf"}.get(act, act)
    return _product(f, n, _arg(n, 3), "linear_act", act=f'"{kind}"', scale=scale, softcap=softcap)


def _product(f: Lowering, n: Node, residual: object, kernel: str, **how: object) -> bool:
    x, w, bias = _value(n, 0), n.args[1], _arg(n, 2)
    if not f.is_weight(w) or not (bias is None or isinstance(bias, Param)) or not f.f32(x, n.result):
        return False
    if residual is not None and not (isinstance(residual, Value) and f.f32(residual)):
        return False
    packed = f.weight(w, "packed", bias if isinstance(bias, Param) else None)
    f.call(kernel, x, packed, _made(f, n.result), residual=residual, **how, loc=n.loc)
    return True


@lowers("rms_norm")
def rms_norm(f: Lowering, n: Node) -> bool:
    """Alone, or with a weight into the rotation of heads that alone reads it."""
    x, w = _value(n, 0), _arg(n, 1)
    if not f.f32(x) or not (w is None or isinstance(w, Param)):
        return False
    weight = f.weight(w, "vector") if isinstance(w, Param) else "None"
    turned = f.only_reader(n.result, "rope")
    if turned is not None and w is not None and n.attrs["groups"] == 1 and x.type.rank == 3:
        f.place_early(turned.result, n)
        if _rope(f, turned, x, weight, n.attrs["eps"]):
            return True
    f.call("rms_norm", x, weight, _made(f, n.result), **n.attrs, loc=n.loc)
    return True


@lowers("l2_norm")
def l2_norm(f: Lowering, n: Node) -> bool:
    """Rows, or heads, to length 1."""
    x = _value(n, 0)
    if not f.f32(x):
        return False
    f.call("l2_norm", x, _made(f, n.result), **n.attrs, loc=n.loc)
    return True


@lowers("add_rms_norm")
def add_rms_norm(f: Lowering, n: Node) -> bool:
    """The residual sum and its norm in one pass, a norm before the sum too."""
    return _sum(f, n, inner=_arg(n, 3), inner_eps=n.attrs["inner_eps"])


@lowers("rms_norm_add")
def rms_norm_add(f: Lowering, n: Node) -> bool:
    """A norm into the residual sum."""
    return _sum(f, n, inner=_arg(n, 2), inner_eps=n.attrs["eps"])


def _sum(f: Lowering, n: Node, inner: object, inner_eps: object) -> bool:
    """The sum of the first two operands, the second normed with ``inner_eps``; then its norm, if a result."""
    x, y, normed = _value(n, 0), _value(n, 1), len(n.results) > 1
    weights = [_arg(n, 2) if normed else None, inner]
    if not f.f32(x, y) or not all(f.places[v].whole for v in (x, y)):
        return False
    if not all(w is None or f.is_weight(w) for w in weights) or inner_eps == 0:
        return False
    w, inner = (f.weight(a, "vector") if isinstance(a, Param) else "None" for a in weights)
    out = [*(_made(f, r) for r in n.results), "None"][:2]
    eps = n.attrs["eps"] if normed else 0.0
    named = {"eps": eps, "inner": inner, "inner_eps": inner_eps or 0.0}
    f.call("add_rms_norm", x, y, out[0], w, out[1], **named, loc=n.loc)
    return True


@lowers("layer_norm")
def layer_norm(f: Lowering, n: Node) -> bool:
    """Rows to zero mean and unit variance."""
    x, w, b = _value(n, 0), _arg(n, 1), _arg(n, 2)
    if not f.f32(x) or not all(a is None or isinstance(a, Param) for a in (w, b)):
        return False
    given = [f.weight(a, "vector") if isinstance(a, Param) else "None" for a in (w, b)]
    f.call("layer_norm", x, *given, _made(f, n.result), **n.attrs, loc=n.loc)
    return True


@lowers("add_layer_norm")
def add_layer_norm(f: Lowering, n: Node) -> bool:
    """The residual sum, then its norm."""
    x, y, weights = _value(n, 0), _value(n, 1), (_arg(n, 2), _arg(n, 3))
    if not f.f32(x, y) or not all(w is None or f.is_weight(w) for w in weights):
        return False
    if not all(f.places[v].whole for v in (x, y)):
        return False
    total, normed = (_made(f, r) for r in n.results)
    f.call("add_rms_norm", x, y, total, "None", "None", eps=0.0, inner="None", inner_eps=0.0, loc=n.loc)
    given = [f.weight(a, "vector") if isinstance(a, Param) else "None" for a in weights]
    f.call("layer_norm", total, *given, normed, eps=n.attrs["eps"], loc=n.loc)
    return True


@lowers("rope")
def rope(f: Lowering, n: Node) -> bool:
    """Rotation by a table of cosines and sines that is made once per step."""
    return _rope(f, n, _value(n, 0), "None", 0.0)


def _rope(f: Lowering, n: Node, x: Value, norm: str, eps: object) -> bool:
    table = _turns(f, n, _value(n, 1), _arg(n, 2))
    if table is None or not f.f32(x):
        return False
    f.done.add(id(n))
    f.call(
        "rope",
        x,
        table,
        _made(f, n.result),
        norm=norm,
        eps=eps,
        interleaved=n.attrs["interleaved"],
        loc=n.loc,
    )
    return True


def _turns(f: Lowering, n: Node, where: Value, freq: object) -> str | None:
    """The step's table of cosines and sines for a rotation; None where there is none to be made."""
    if not f.shared.is_positions(f.func, where) or not (freq is None or isinstance(freq, Param)):
        return None
    inverse = f.table_weight(freq) if isinstance(freq, Param) else repr(n.attrs["theta"])
    if inverse is None:
        return None
    rotary = _value(n, 0).type.dims[-1] if n.attrs["rotary"] is None else n.attrs["rotary"]
    return f.shared.rope_table(f"turns({inverse}, {rotary}, scale={n.attrs['scale']!r})")


@lowers("rope_append")
def rope_append(f: Lowering, n: Node) -> bool:
    """Queries rotated; keys rotated, and values, to their pages in place."""
    q, k, v, cache = n.args[:4]
    norms, table = (_arg(n, 6), _arg(n, 7)), _turns(f, n, _value(n, 4), _arg(n, 8))
    if table is None or not f.f32(q, k) or not (v is None or f.f32(v)) or _strided(cache):
        return False
    if not all(w is None or f.is_weight(w) for w in norms):
        return False
    given = [f.weight(w, "vector") if isinstance(w, Param) else "None" for w in norms]
    named = {"q_norm": given[0], "k_norm": given[1], "eps": n.attrs["eps"]}
    out = _made(f, n.results[0])
    f.call("rope_append", q, k, v, cache, table, out, **named, interleaved=n.attrs["interleaved"], loc=n.loc)
    return True


@lowers("kv_append")
def kv_append(f: Lowering, n: Node) -> bool:
    """Keys and values go to their pages, in place."""
    cache, k, v = n.args[:3]
    if not f.f32(k) or not (v is None or f.f32(v)) or _strided(cache):
        return False
    f.call("kv_append", cache, k, v, loc=n.loc)
    return True


@lowers("paged_attention")
def paged_attention(f: Lowering, n: Node) -> bool:
    """Attention over the pages of a cache."""
    q, cache, per_head = _value(n, 0), _value(n, 1), (_arg(n, 3), _arg(n, 4))
    if (
        not f.f32(q)
        or not isinstance(cache.type.elem, Paged)
        or not all(w is None or f.is_weight(w) for w in per_head)
        or any(_arg(n, at) is not None for at in (5, 6))
        or _strided(cache)
    ):
        return False
    sinks, slopes = (f.weight(w, "vector") if isinstance(w, Param) else "None" for w in per_head)
    attrs = {name: value for name, value in n.attrs.items() if name != "block"}  # which only an index has
    f.call("paged_attention", q, cache, _made(f, n.result), sinks=sinks, slopes=slopes, **attrs, loc=n.loc)
    return True


def _strided(cache: object) -> bool:
    """Whether a cache keeps only some of the tokens."""
    return isinstance(cache, Value) and isinstance(cache.type.elem, Paged) and cache.type.elem.stride > 1


@lowers("silu_mul")
def silu_mul(f: Lowering, n: Node) -> bool:
    """``silu(gate) * up``."""
    return _act_mul(f, n, "silu")


@lowers("gelu_mul")
def gelu_mul(f: Lowering, n: Node) -> bool:
    """``gelu(gate) * up``."""
    return _act_mul(f, n, "gelu_tanh" if n.attrs["tanh"] else "gelu_erf")


def _act_mul(f: Lowering, n: Node, act: str) -> bool:
    gate, up = n.args
    if not isinstance(gate, Value) or not isinstance(up, Value) or not f.f32(gate, up):
        return False
    f.call("act_mul", f'"{act}"', gate, up, _made(f, n.result), loc=n.loc)
    return True


@lowers("last_rows")
def last_rows(f: Lowering, n: Node) -> bool:
    """The last row of each sequence."""
    x = _value(n, 0)
    if not f.f32(x):
        return False
    f.call("last_rows", x, _made(f, n.result), loc=n.loc)
    return True


def _made(f: Lowering, v: Value) -> Value:
    f.place(v)
    return v
