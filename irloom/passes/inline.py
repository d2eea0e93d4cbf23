"""Calls and loops become the nodes they stand for: one flat ``main``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from irloom.ir.elem import CACHES
from irloom.ir.graph import Builder, Call, Func, Loop, Module, Node, Param, Slot, Stmt, Value
from irloom.ir.interp import cache_types
from irloom.ir.weight_expr import WeightExpr, tensor_name

from .core import Changes, Pass, spend
from .layers import join_loc, rename_tensors


@dataclass(frozen=True)
class Inline(Pass):
    """Replace every call by the nodes of its function, for its layer: the inverse of ``outline``.

    ``{i}`` in weight names and locations becomes the layer's number. A stack of caches becomes one parameter
    per cache.
    """

    preserves: ClassVar[tuple[str, ...]] = ("*", "-outline")

    def run(self, m: Module) -> Changes:
        """Leave ``main`` alone in the module."""
        calls = sum(1 for _ in m.calls())
        if not calls or not spend():
            return Changes()
        m.funcs = {"main": _Inliner(m).run()}
        return Changes([f"main: {calls} calls, {len(m.main.body)} nodes"])


@dataclass
class _Inliner:
    """``values`` is what stands for each value so far, ``stacks`` the caches of each stack by now."""

    m: Module
    values: dict[Value, Value] = field(default_factory=dict[Value, Value])
    stacks: dict[Value, list[Value]] = field(default_factory=dict[Value, "list[Value]"])
    bound: dict[WeightExpr, Param] = field(default_factory=dict[WeightExpr, Param])

    def run(self) -> Func:
        old = self.m.main
        self.out = Func("main")
        self.names = Builder(self.out, taken=set())
        types = cache_types(self.m)
        for p in old.data:
            if p.type.elem == CACHES:
                each = [
                    Param(self.names.fresh(f"{p.name}_{i}"), types[i])
                    for i in range(int(str(p.type.dims[0])))
                ]
                self.stacks[p] = list(each)
                self.out.params += each
            else:
                self.out.params.append(self.data(p))
        for p in old.weights:
            self.weight(p, None)
        for s in old.body:
            self.statement(s, {})
        for r in old.returns:
            self.out.returns += self.stacks[r] if r in self.stacks else [self.values[r]]
        self.out.params += self.bound.values()
        return self.out

    def data(self, p: Param) -> Param:
        self.values[p] = new = Param(self.names.fresh(p.name), p.type)
        return new

    def weight(self, p: Param, number: int | None) -> Param:
        assert p.weight is not None
        expr = p.weight if number is None else rename_tensors(p.weight, lambda n: tensor_name(n, number))
        if expr not in self.bound:
            self.bound[expr] = Param(self.names.fresh(p.name), p.type, None, expr)
        self.values[p] = self.bound[expr]
        return self.bound[expr]

    def statement(self, s: Stmt, at: dict[str, int]) -> None:
        match s:
            case Node():
                self.node(s, "")
            case Call():
                self.call(s, at)
            case Loop():
                self.values.update((p, self.values[v]) for p, v in zip(s.params, s.inits, strict=True))
                for i in s.indices:
                    for inner in s.body:
                        self.statement(inner, {**at, s.var: i})
                    carried = [self.values[v] for v in s.yields]
                    self.values.update(zip(s.params, carried, strict=True))
                self.values.update((r, self.values[p]) for r, p in zip(s.results, s.params, strict=True))

    def node(self, n: Node, place: str) -> None:
        args = [self.values[a] if isinstance(a, Value) else a for a in n.args]
        results = [Value(self.names.fresh(r.name), r.type) for r in n.results]
        self.values.update(zip(n.results, results, strict=True))
        loc = join_loc(place, n.loc)
        self.out.body.append(Node(n.op, args, dict(n.attrs), results, loc, n.made_by))

    def call(self, s: Call, at: dict[str, int]) -> None:
        callee = self.m.funcs[s.callee]
        number = s.index.at(at) if s.index else None
        place = s.loc if number is None else s.loc.replace("{i}", str(number))
        slots = [(x, x.index.at(at)) for x in s.slots]
        given = [self.values[a] for a in s.args] + [self.cache(x, i) for x, i in slots]
        given += [self.cache(x, x.index.at(at)) for x in s.reads]
        for p in callee.weights:
            self.weight(p, number)
        self.values.update(zip(callee.data, given, strict=True))
        for inner in callee.body:
            if isinstance(inner, Node):
                self.node(inner, place)
            else:
                self.statement(inner, at)
        made = [self.values[r] for r in callee.returns]
        self.values.update(zip(s.results, made, strict=True))
        for (x, i), renewed in zip(slots, made[len(made) - len(slots) :], strict=True):
            self.stacks[x.stack][i] = renewed

    def cache(self, x: Slot, i: int) -> Value:
        return self.stacks[x.stack][i]
