"""Activations in fp8: one ``quantize`` in front of the linears that read a value."""

from __future__ import annotations

from irloom.ir.elem import Elem, Quant
from irloom.ir.graph import Builder, Func, Module, Node, Param, Stmt, Value
from irloom.ir.ops import linear, linear_act, quantize

from .core import Changes, spend
from .near_miss import NearMiss, if_asked
from .quant_schemes import declare

LINEARS = (linear, linear_act)
"""The ops whose rows are rounded."""


def quantize_rows(m: Module, f: Func, to: Quant, changes: Changes) -> None:
    """Let the linears of ``f`` whose weights have the base of ``to`` read rows that are rounded to it."""
    to = declare(m, to)
    done = {n.values[0]: n for n in f.nodes if n.op is quantize and n.attrs["to"] == to}
    for x, readers in _read(f, to).items():
        place = f"{f.name}.{x.name}"
        if isinstance(x.type.elem, Quant):
            misses = [] if x.type.elem == to else [NearMiss(place, f"it is {x.type.elem} already, not {to}")]
            changes.near_misses += misses
            continue
        first, made = f.body.index(readers[0]), done.get(x)
        shared = made is not None and f.body.index(made) < first
        if not spend():
            continue
        q = made.result if made and shared else _rounded(f, x, to, first)
        for n in readers:
            n.args[0], n.attrs["elem"] = q, x.type.plain
        m.quants[to.name] = to
        names = ", ".join(n.results[0].name for n in readers)
        changes.places.append(f"{f.name}.{q.name}: {to}, for {names}")
    for n in f.nodes:
        if n.op not in LINEARS and any(_rounds(v, to) for v in n.values):
            changes.near_misses += if_asked(f"{f.name}.{n.results[0].name}", f"{n.op.name}: weights alone")


def _read(f: Func, to: Quant) -> dict[Value, list[Node]]:
    """What the linears with such weights read, and which do."""
    out: dict[Value, list[Node]] = {}
    for n in f.nodes:
        if n.op in LINEARS and isinstance(x := n.args[0], Value) and _rounds(n.args[1], to):
            weight = isinstance(x, Param) and x.weight is not None
            plain = isinstance(x.type.elem, Elem) and x.type.elem.kind == "float"
            if not weight and (plain or isinstance(x.type.elem, Quant)):
                out.setdefault(x, []).append(n)
    return out


def _rounds(v: object, to: Quant) -> bool:
    """Whether it is a weight in the base that rows are to have."""
    if not isinstance(v, Param) or v.weight is None:
        return False
    return isinstance(v.type.elem, Quant) and v.type.elem.base == to.base


def _rounded(f: Func, x: Value, to: Quant, at: int) -> Value:
    """``quantize(x)``, in front of the statement ``at``."""
    reader, added = f.body[at], list[Stmt]()
    with Builder(f, added, reader.loc if isinstance(reader, Node) else "") as b:
        b.name = f"{x.name}_f8"
        q: Value = quantize(x, to=to)
    f.body[at:at] = added
    return q
