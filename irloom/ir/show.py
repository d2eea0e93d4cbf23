"""The textual form, written. It is a subset of Python, and ``parse(show(m)) == m`` always."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .elem import Elem, Quant, elem_of
from .graph import Arg, Call, Func, Loop, Module, Node, Param, Stmt, Value
from .op import Attr
from .types import Type
from .weight_expr import show_weight

if TYPE_CHECKING:
    import torch

FORMAT = 1
INDENT = "    "


def show(m: Module, *, header: bool = True) -> str:
    """The module as text; without ``header`` only its functions."""
    functions = [show_func(f) for f in m.funcs.values()]
    return "\n\n".join([_header(m), *functions] if header else functions) + "\n"


def _header(m: Module) -> str:
    title = [f"# irloom {FORMAT}"]
    if m.model:
        title.append(f"model: {m.model}")
    if m.passes:
        title.append(f"after: {', '.join(m.passes)}")
    facts = [f"{name}: dim[{low}, {high}]" for name, (low, high) in m.dims.items()]
    if m.mesh:
        facts.append(f"mesh({', '.join(f'{axis}={size}' for axis, size in m.mesh.items())})")
    rows = ["   ".join(title), *(["; ".join(facts)] if facts else [])]
    rows += [f"{name} = {q.declaration()}" for name, q in m.quants.items()]
    if m.buffers:
        rows.append("; ".join(f"{name}: buffer[{size}]" for name, size in m.buffers.items()))
    rows += [f"{name} = const({_const(x)})" for name, x in m.consts.items()]
    return "\n".join(rows)


def _const(x: torch.Tensor) -> str:
    import torch

    raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f'{Type(elem_of(x.dtype), tuple(x.shape))}, "{base64.b64encode(raw).decode()}"'


def show_func(f: Func) -> str:
    """One function as text, without a trailing newline."""
    params = "".join(f"{INDENT}{show_param(p)},\n" for p in f.params)
    types = [str(r.type) for r in f.returns]
    result = types[0] if len(types) == 1 else f"({', '.join(types)})"
    rows = [row for s in f.body for row in _stmt(s, INDENT)]
    rows.append(f"{INDENT}return {', '.join(r.name for r in f.returns)}")
    return "\n".join([f"def {f.name}(\n{params}) -> {result}:", *rows])


def show_param(p: Param) -> str:
    """A parameter, and the weight it is bound to when it is."""
    return show_typed(p) + (f" = {show_weight(p.weight)}" if p.weight else "")


def show_typed(v: Value) -> str:
    """``name: type``, and the buffer it lives in when it has one."""
    return f"{v.name}: {_place(v)}"


def _place(v: Value) -> str:
    return f"{v.type} @ {v.buffer}" if v.buffer else str(v.type)


def show_stmt(s: Stmt) -> str:
    """A statement without its indent; of a loop its head."""
    return _stmt(s, "")[0]


def _stmt(s: Stmt, indent: str) -> list[str]:
    match s:
        case Node():
            return [indent + show_node(s)]
        case Call():
            index = f"[{s.index}]" if s.index else ""
            targets = ", ".join(_targets(s))
            given = ", ".join([*(a.name for a in s.args), *map(str, s.slots), *map(str, s.reads)])
            return [indent + _comment(f"{targets} = {s.callee}{index}({given})", s.loc)]
        case Loop():
            bounds = f"{s.stop}" if (s.start, s.step) == (0, 1) else f"{s.start}, {s.stop}"
            bounds += f", {s.step}" if s.step != 1 else ""
            inner = [row for x in s.body for row in _stmt(x, indent + INDENT)]
            return [f"{indent}for {s.var} in range({bounds}):", *inner]


def _targets(c: Call) -> list[str]:
    plain = len(c.results) - len(c.slots)
    return [*(r.name for r in c.results[:plain]), *(str(x) for x in c.slots)]


def show_node(n: Node) -> str:
    """One op application as a line, without its indent."""
    given = [show_arg(a) for a in n.args]
    given += [f"{k}={show_attr(v)}" for k, v in n.attrs.items() if not _is_default(n, k, v)]
    call = f"{n.op.name}({', '.join(given)})"
    if len(n.results) == 1:
        return _comment(f"{show_typed(n.results[0])} = {call}", n.loc)
    types = "-> " + ", ".join(_place(r) for r in n.results)
    return _comment(
        f"{', '.join(r.name for r in n.results)} = {call}", "  ".join([types, n.loc] if n.loc else [types])
    )


def _is_default(n: Node, key: str, value: Attr) -> bool:
    default = n.op.attrs[key]
    return type(default) is type(value) and default == value


def _comment(row: str, text: str) -> str:
    return f"{row}  # {text}" if text else row


def show_arg(a: Arg) -> str:
    """An operand: a name, a number, or None."""
    return a.name if isinstance(a, Value) else show_attr(a)


def show_attr(v: Attr) -> str:
    """An attribute's value.

    >>> show_attr((1, 2.5)), show_attr(float("-inf")), show_attr((3,))
    ('(1, 2.5)', '-inf', '(3,)')
    """
    if isinstance(v, tuple):
        return f"({_items(v)})"
    if isinstance(v, float) and not math.isfinite(v):
        return str(v)
    return v.name if isinstance(v, Elem | Quant) else repr(v)


def _items(values: Sequence[Attr]) -> str:
    return show_attr(values[0]) + "," if len(values) == 1 else ", ".join(show_attr(v) for v in values)
