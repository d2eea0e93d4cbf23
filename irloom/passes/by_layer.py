"""Which values are the hidden state behind each layer, in a flat program and in an outlined one."""

from __future__ import annotations

from irloom.ir.elem import Elem
from irloom.ir.graph import Func, Module, Node, Value

from .layers import Layer, cut
from .rows import dims_of


def hidden_states(m: Module) -> dict[Value, int | None]:
    """The value that each layer hands on, and the layer's number; None where calls tell the number.

    Where layers are functions that is the first tensor of tokens that they return, in a flat program the last
    that others read. What a pass moved across the border is in the next layer's value.
    """
    if "main" not in m.funcs:
        return {}
    called = {call.callee for call, index, _ in m.calls() if index is not None}
    if called:
        return {v: None for name in called if (v := _returned(m.funcs[name])) is not None}
    return _flat(m.main) if all(isinstance(s, Node) for s in m.main.body) else {}


def depth(m: Module) -> int:
    """How many layers a program goes through, at least 1."""
    if "main" not in m.funcs:
        return 1
    calls = sum(index is not None for _, index, _ in m.calls())
    flat = all(isinstance(s, Node) for s in m.main.body)
    return max(calls or (len(cut(m.main).layers) if flat else 1), 1)


def _returned(f: Func) -> Value | None:
    made = {r for n in f.nodes for r in n.results}
    return next((v for v in f.returns if v in made and _of_tokens(v, f)), None)


def _flat(main: Func) -> dict[Value, int | None]:
    parts = cut(main).parts
    out: dict[Value, int | None] = {}
    read = set(main.returns)
    for part in reversed(parts):
        if isinstance(part, Layer):
            made = [r for n in part.nodes for r in n.results if r in read and _of_tokens(r, main)]
            if made:
                out[made[-1]] = part.number
        read.update(v for n in (part.nodes if isinstance(part, Layer) else part) for v in n.values)
    return dict(reversed(out.items()))


def _of_tokens(v: Value, f: Func) -> bool:
    elem = v.type.elem
    floats = isinstance(elem, Elem) and elem.kind == "float"
    return floats and len(v.type.dims) > 1 and v.type.dims[0] == dims_of(f)[0]
