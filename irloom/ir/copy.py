"""Whole-module operations: copy, structural comparison, export to networkx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import torch

from .elem import Elem
from .graph import Arg, Call, Func, Loop, Module, Node, Param, Slot, Stmt, Value, retype


def copy_module(m: Module) -> Module:
    """An independent copy of ``m``; ops, types, weight bindings and constants are immutable and shared."""
    return Module(
        funcs={name: copy_func(f) for name, f in m.funcs.items()},
        model=m.model,
        passes=list(m.passes),
        dims=dict(m.dims),
        mesh=dict(m.mesh),
        quants=dict(m.quants),
        buffers=dict(m.buffers),
        consts=dict(m.consts),
    )


def copy_func(f: Func) -> Func:
    """An independent copy of ``f``."""
    seen: dict[Value, Value] = {}

    def new(v: Value) -> Value:
        seen[v] = Value(v.name, v.type, v.buffer)
        return seen[v]

    params = [Param(p.name, p.type, p.buffer, p.weight) for p in f.params]
    seen.update(zip(f.params, params, strict=True))
    body = [_copy_stmt(s, seen, new) for s in f.body]
    return Func(f.name, params, body, [seen[r] for r in f.returns])


def _copy_stmt(s: Stmt, seen: dict[Value, Value], new: Callable[[Value], Value]) -> Stmt:
    def old(a: Arg) -> Any:
        return seen[a] if isinstance(a, Value) else a

    match s:
        case Node():
            args, results = [old(a) for a in s.args], [new(r) for r in s.results]
            return Node(s.op, args, dict(s.attrs), results, s.loc, s.made_by)
        case Call():
            args, slots = [old(a) for a in s.args], [Slot(seen[x.stack], x.index) for x in s.slots]
            reads = [Slot(seen[x.stack], x.index) for x in s.reads]
            return Call(s.callee, s.index, args, slots, [new(r) for r in s.results], s.loc, reads)
        case Loop():
            inits, params = [old(v) for v in s.inits], [new(v) for v in s.params]
            body = [_copy_stmt(inner, seen, new) for inner in s.body]
            yields, results = [old(v) for v in s.yields], [new(v) for v in s.results]
            return Loop(s.var, s.start, s.stop, s.step, inits, params, body, yields, results)


def same(a: Module, b: Module) -> bool:
    """Whether two modules are structurally equal."""
    header_a = (a.model, a.passes, a.dims, a.mesh, a.quants, a.buffers, list(a.funcs), set(a.consts))
    header_b = (b.model, b.passes, b.dims, b.mesh, b.quants, b.buffers, list(b.funcs), set(b.consts))
    if header_a != header_b:
        return False
    if not all(same_const(x, b.consts[k]) for k, x in a.consts.items()):
        return False
    return all(_key(a.funcs[name]) == _key(b.funcs[name]) for name in a.funcs)


def same_const(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two constants have the same element, dims and bits."""
    return _entries(x) == _entries(y)


def _entries(x: torch.Tensor) -> tuple[Any, ...]:
    """A constant as what can be compared: not every dtype can be."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return x.dtype, x.shape, flat.view(torch.uint8).numpy().tobytes()


def _key(f: Func) -> Any:
    """What makes two functions equal; a value is its definition's number and its name."""
    number: dict[Value, int] = {}

    def define(v: Value) -> tuple[Any, ...]:
        number[v] = len(number)
        return (v.name, v.type, v.buffer)

    def ref(a: Arg) -> Any:
        return ("%", number[a]) if isinstance(a, Value) else (type(a), a)

    def stmt(s: Stmt) -> Any:
        match s:
            case Node():
                attrs = tuple((k, type(v), v) for k, v in s.attrs.items())
                return (
                    "node",
                    s.op.name,
                    [ref(a) for a in s.args],
                    attrs,
                    s.loc,
                    [define(r) for r in s.results],
                )
            case Call():
                slots = [[(ref(x.stack), x.index) for x in each] for each in (s.slots, s.reads)]
                return (
                    "call",
                    s.callee,
                    s.index,
                    [ref(a) for a in s.args],
                    slots,
                    s.loc,
                    [define(r) for r in s.results],
                )
            case Loop():
                head = ("loop", s.var, s.indices, [ref(v) for v in s.inits], [define(v) for v in s.params])
                inner = [stmt(x) for x in s.body]
                return (*head, inner, [ref(v) for v in s.yields], [define(v) for v in s.results])

    params = [(*define(p), p.weight) for p in f.params]
    return (f.name, params, [stmt(s) for s in f.body], [ref(r) for r in f.returns])


def to_networkx(f: Func) -> nx.MultiDiGraph[str]:
    """``f`` as a graph: vertices have ``kind``, ``op``, ``type``, ``loc``; edges ``value`` and ``operand``.

    A vertex is named after the first value it makes (``name#2`` when a loop gives a name again); the vertex
    ``return`` reads what is returned.
    """
    g: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=f.name)
    source: dict[Value, str] = {}

    def vertex(results: list[Value], **facts: Any) -> str:
        name, n = results[0].name, 1
        while name in g:
            n += 1
            name = f"{results[0].name}#{n}"
        g.add_node(name, type=str(results[0].type), **facts)
        source.update(dict.fromkeys(results, name))
        return name

    for p in f.params:
        vertex([p], kind="weight" if p.weight else "input", op="", loc="")
    for s in f.body:
        op = s.op.name if isinstance(s, Node) else s.callee if isinstance(s, Call) else "for"
        reads = s.values
        name = vertex(
            s.results, kind=type(s).__name__.lower(), op=op, loc="" if isinstance(s, Loop) else s.loc
        )
        for i, v in enumerate(reads):
            g.add_edge(source[v], name, value=v.name, operand=i)
    g.add_node("return", kind="return", op="return", type="", loc="")
    for i, v in enumerate(f.returns):
        g.add_edge(source[v], "return", value=v.name, operand=i)
    return g


def with_elem(m: Module, old: Elem, new: Elem) -> None:
    """Let ``m`` compute in ``new`` where it does in ``old``, in place: weights, casts, what follows."""

    def swapped(a: Any) -> Any:
        return new if a == old else a

    for f in m.funcs.values():
        for p in f.params:
            p.type = p.type.with_elem(swapped(p.type.elem))
        for n in f.nodes:
            n.attrs = {k: swapped(v) for k, v in n.attrs.items()}
        retype(f)
    m.consts = {k: x.to(new.torch) if x.dtype == old.torch else x for k, x in m.consts.items()}
