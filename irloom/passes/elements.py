"""The values of a function are given other elements: casts where two meet, weights in what reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from irloom.ir.elem import AnyElem, Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Builder, Call, Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.ops import cast
from irloom.ir.signature import Operand

from .core import Changes
from .near_miss import NearMiss
from .roll import rename_carried


def is_float(v: Value) -> bool:
    """Whether it is a plain tensor of floats."""
    return isinstance(v.type.elem, Elem) and v.type.elem.kind == "float"


@dataclass
class Typing:
    """Gives the values of one function new elements. What it calls has them already."""

    m: Module
    f: Func
    elems: tuple[Elem | None, ...]
    streams: dict[str, Elem | None]
    active: set[Value]
    changes: Changes = field(default_factory=Changes)
    casts: dict[tuple[Value, Elem, int], Value] = field(default_factory=dict[tuple[Value, Elem, int], Value])
    bound: dict[tuple[Value, Elem], Param] = field(default_factory=dict[tuple[Value, Elem], Param])
    was: dict[Value, Elem] = field(default_factory=dict[Value, Elem])

    def run(self) -> Changes:
        """Write the function anew: one change says what became of it."""
        f = self.f
        self.names = Builder(f)
        wanted = dict(zip(f.nodes, self.elems, strict=True))
        before = [v.type for v in _all(f)]
        self.was = {v: v.type.plain for v in _all(f) if is_float(v)}
        for p in f.data:
            p.type = p.type.with_elem(self.stream(p, f))
        out: list[Stmt] = []
        for s in f.body:
            match s:
                case Node():
                    self.node(s, wanted[s], out)
                case Call():
                    self.call(s, out, out)
                case Loop():
                    self.loop(s, out)
            out.append(s)
        f.returns = [self.use(r, self.stream(r, f), out) for r in f.returns]
        f.body = out
        if [v.type for v in _all(f)] != before:
            made = [r.type.plain for n in f.nodes for r in n.results if r in self.was]
            count = ", ".join(f"{made.count(e)} values {e}" for e in dict.fromkeys(made))
            self.changes.places.append(f"{f.name}: {count}, {len(self.casts)} casts")
        return self.changes

    def stream(self, v: Value, f: Func) -> AnyElem:
        """The element of something that a function takes or returns."""
        chosen = self.streams[f.name]
        return chosen if chosen and v in self.active and v in self.was else self.was.get(v, v.type.elem)

    def node(self, n: Node, elem: Elem | None, out: list[Stmt]) -> None:
        """Let ``n`` compute in ``elem``; None leaves it what it is."""
        args = list(n.args)
        kept = [elem is None or not isinstance(a, Value) or _stays(n, i) for i, a in enumerate(args)]
        if elem is not None:
            if n.attrs.get("elem") is not None and n.args:
                n.attrs["elem"] = elem
            types = [
                a.type.with_elem(elem) if isinstance(a, Value) and is_float(a) and not keep else _type(a)
                for a, keep in zip(args, kept, strict=True)
            ]
            try:
                n.op.infer(types, n.attrs)
            except IRError as e:
                self.changes.near_misses.append(
                    NearMiss(f"{self.f.name}.{n.results[0].name}", f"not in {elem}: {e.message}", loc=n.loc)
                )
                kept = [True] * len(args)
        for i, a in enumerate(args):
            bound = isinstance(a, Param) and a.weight is not None
            if isinstance(a, Value) and a in self.was and (bound or elem is not None):
                n.args[i] = self.use(a, self.was[a] if kept[i] or elem is None else elem, out, n.loc)
        for r, t in zip(n.results, n.op.infer(n.operands, n.attrs), strict=True):
            r.type = t

    def call(self, c: Call, out: list[Stmt], ahead: list[Stmt], own: frozenset[Value] = frozenset()) -> None:
        """Give a call what its function takes; what a loop did not make (``own``) is cast ahead of it."""
        callee = self.m.funcs[c.callee]
        for at, (a, p) in enumerate(zip(c.args, callee.data, strict=False)):
            c.args[at] = self.use(a, p.type.elem, out if a in own else ahead, c.loc)
        for r, made in zip(c.results, callee.returns, strict=True):
            r.type = made.type

    def loop(self, s: Loop, out: list[Stmt]) -> None:
        """Let a loop carry tensors in the element of the functions that it calls."""
        called = [self.m.funcs[c.callee] for c in s.body if isinstance(c, Call)]
        for at, (init, p) in enumerate(zip(s.inits, s.params, strict=True)):
            elem = self.stream(p, called[0]) if called else init.type.elem
            s.inits[at] = self.use(init, elem, out)
            p.type = p.type.with_elem(elem)
        rename_carried(s)
        own = frozenset({*s.params, *(r for inner in s.body for r in inner.results)})
        body: list[Stmt] = []
        for inner in s.body:
            if isinstance(inner, Call):
                self.call(inner, body, out, own)
            body.append(inner)
        s.yields = [self.use(v, p.type.elem, body) for v, p in zip(s.yields, s.params, strict=True)]
        s.body = body
        for r, p in zip(s.results, s.params, strict=True):
            r.type = p.type

    def use(self, v: Value, elem: AnyElem, into: list[Stmt], loc: str = "") -> Value:
        """``v`` in another element: a weight is read in it, anything else is cast, once."""
        if not isinstance(elem, Elem) or v not in self.was:
            return v
        if isinstance(v, Param) and v.weight is not None:
            return self.weight(v, elem)
        if v.type.elem == elem:
            return v
        key = (v, elem, id(into))
        if key not in self.casts:
            with Builder(self.f, into, loc, self.names.taken) as b:
                own = f"_{v.type.elem}"
                b.name = f"{v.name.removesuffix(own)}_{elem}"
                self.casts[key] = cast(v, to=elem)
        return self.casts[key]

    def weight(self, p: Param, elem: Elem) -> Param:
        """The weight in an element; the first that is asked for is the parameter's own."""
        if not any(old is p for old, _ in self.bound):
            self.bound[p, elem] = p
            p.type = p.type.with_elem(elem)
        if (p, elem) not in self.bound:
            name = self.names.fresh(f"{p.name}_{elem}")
            self.bound[p, elem] = Param(name, p.type.with_elem(elem), weight=p.weight)
            self.f.params.append(self.bound[p, elem])
        return self.bound[p, elem]


def _all(f: Func) -> list[Value]:
    """Every value of a function."""
    inner = [
        v for s in f.body if isinstance(s, Loop) for v in (*s.params, *(r for x in s.body for r in x.results))
    ]
    return [*f.params, *(r for s in f.body for r in s.results), *inner]


def _stays(n: Node, at: int) -> bool:
    """Whether an operand keeps its element: frequencies, and weights of recurrences."""
    recurs = n.op.carried is not None or n.op.name.startswith("carried_")
    a = n.args[at]
    weight = isinstance(a, Param) and a.weight is not None
    return (weight and recurs) or (not n.op.variadic and n.op.operands[at] == "inv_freq")


def _type(a: Arg) -> Operand:
    return a.type if isinstance(a, Value) else a
