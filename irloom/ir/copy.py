"""Whole-module operations: copy, structural comparison, export to networkx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import torch

from .elem import Elem
from .graph import Arg, Call, Func, Loop, Module, Node, Param, Slot, Stmt, Value, retype, take_name


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
    return all(_Twins().funcs(f, b.funcs[name]) for name, f in a.funcs.items())


def same_const(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two constants have the same element, dims and bits."""
    return x is y or _entries(x) == _entries(y)


def _entries(x: torch.Tensor) -> tuple[Any, ...]:
    """A constant as what can be compared: not every dtype can be."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return x.dtype, x.shape, flat.view(torch.uint8).numpy().tobytes()


class _Twins:
    """Walks two functions side by side, up to where they first differ; ``of`` pairs their values."""

    def __init__(self) -> None:
        self.of: dict[Value, Value] = {}

    def funcs(self, f: Func, g: Func) -> bool:
        weights = [p.weight for p in f.params] == [p.weight for p in g.params]
        heads = f.name == g.name and weights and self.define(f.params, g.params)
        return f is g or (heads and self.blocks(f.body, g.body) and self.refs(f.returns, g.returns))

    def define(self, a: Sequence[Value], b: Sequence[Value]) -> bool:
        """Whether values are alike where they are made; from then on the one is the other's twin."""
        self.of.update(zip(a, b, strict=False))
        return len(a) == len(b) and all(
            x.name == y.name and x.buffer == y.buffer and (x.type is y.type or x.type == y.type)
            for x, y in zip(a, b, strict=True)
        )

    def refs(self, a: Sequence[Any], b: Sequence[Any]) -> bool:
        return len(a) == len(b) and all(
            self.of.get(x) is y if isinstance(x, Value) else _alike(x, y) for x, y in zip(a, b, strict=True)
        )

    def slots(self, a: Sequence[Slot], b: Sequence[Slot]) -> bool:
        stacks = self.refs([x.stack for x in a], [x.stack for x in b])
        return stacks and [x.index for x in a] == [x.index for x in b]

    def blocks(self, a: Sequence[Stmt], b: Sequence[Stmt]) -> bool:
        return len(a) == len(b) and all(map(self.stmts, a, b))

    def stmts(self, a: Stmt, b: Stmt) -> bool:
        match a, b:
            case Node(), Node():
                same = a.op is b.op and a.loc == b.loc and self.refs(a.args, b.args)
                attrs = same and list(a.attrs) == list(b.attrs)
                alike = attrs and all(map(_alike, a.attrs.values(), b.attrs.values()))
            case Call(), Call():
                same = (a.callee, a.index, a.loc) == (b.callee, b.index, b.loc)
                slots = self.slots(a.slots, b.slots) and self.slots(a.reads, b.reads)
                alike = same and slots and self.refs(a.args, b.args)
            case Loop(), Loop():
                same = (a.var, a.indices) == (b.var, b.indices) and self.refs(a.inits, b.inits)
                inner = same and self.define(a.params, b.params) and self.blocks(a.body, b.body)
                alike = inner and self.refs(a.yields, b.yields)
            case _:
                return False
        return alike and self.define(a.results, b.results)


def _alike(a: object, b: object) -> bool:
    """Equal, and of one type: 1 is not 1.0 here."""
    return a is b or (type(a) is type(b) and a == b)


def to_networkx(f: Func) -> nx.MultiDiGraph[str]:
    """``f`` as a graph: vertices have ``kind``, ``op``, ``type``, ``loc``; edges ``value`` and ``operand``.

    A vertex is named after the first value it makes (``name#2`` when a loop gives a name again); the vertex
    ``return`` reads what is returned.
    """
    g: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=f.name)
    source: dict[Value, str] = {}
    taken: set[str] = set()

    def vertex(results: list[Value], **facts: Any) -> str:
        name = take_name(results[0].name, taken, "#", 2)
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
