"""Layers of one function that shall differ become functions of their own.

After ``outline`` equal layers are one function. A pass that treats some of them in another way says which are
to be told apart; each kind gets a copy of the function, and ``main`` calls that for its layers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from irloom.ir.copy import copy_func
from irloom.ir.graph import Call, Func, Index, Loop, Module, Node, Slot, Stmt, Value, substitute, take_name

from .roll import rename_carried

Kind = TypeVar("Kind", bound=Hashable)


def split_layers(m: Module, kinds: Mapping[str, Mapping[int | None, Kind]]) -> dict[str, dict[Kind, Func]]:
    """Let ``main`` call a function of its own for each kind of layer; for each function those by kind.

    ``kinds`` says for functions of what kind each layer is that calls them; the first keeps the function. A
    loop is cut where the kinds of its rounds change, so that what repeats stays a loop. Nothing is computed
    otherwise than before.
    """
    made: dict[str, dict[Kind, Func]] = {}
    taken = set(m.funcs)
    for name, of in kinds.items():
        made[name] = {}
        for each in dict.fromkeys(of.values()):
            made[name][each] = _copy(m.funcs[name], taken) if made[name] else m.funcs[name]
    if any(len(each) > 1 for each in made.values()):
        funcs = [g for name, f in m.funcs.items() for g in (made[name].values() if name in made else [f])]
        m.funcs = {g.name: g for g in funcs}
        _Cutter(m.main, {k: {i: made[k][x].name for i, x in of.items()} for k, of in kinds.items()}).run()
    return made


def _copy(f: Func, taken: set[str]) -> Func:
    new = copy_func(f)
    new.name = take_name(f.name, taken)
    return new


class _Cutter:
    """Calls become calls of what ``called`` says for a function and a layer."""

    def __init__(self, main: Func, called: Mapping[str, Mapping[int | None, str]]) -> None:
        self.main, self.called = main, called
        inner = (v for s in main.body if isinstance(s, Loop) for x in s.body for v in x.results)
        self.taken = main.names() | {v.name for v in inner}

    def run(self) -> None:
        """Rewrite ``main``."""
        body: list[Stmt] = []
        swap: dict[Value, Value] = {}

        def follow(a: Any) -> Any:
            return swap.get(a, a) if isinstance(a, Value) else a

        for s in self.main.body:
            substitute(s, follow)
            if isinstance(s, Loop):
                rename_carried(s)
                body += self.cut(s, swap)
            else:
                self.name([s], {})
                body.append(s)
        self.main.body = body
        self.main.returns = [swap.get(r, r) for r in self.main.returns]

    def name(self, body: Sequence[Stmt], at: dict[str, int]) -> None:
        """Let calls name what they are to call in this round."""
        for c in body:
            if isinstance(c, Call):
                c.callee = self.callee(c, at)

    def callee(self, c: Call, at: dict[str, int]) -> str:
        """What a call is to call."""
        index = c.index.at(at) if c.index else None
        return self.called[c.callee][index] if c.callee in self.called else c.callee

    def wanted(self, loop: Loop, i: int) -> list[str]:
        """What the calls of a round are to call."""
        return [self.callee(c, {loop.var: i}) for c in loop.body if isinstance(c, Call)]

    def cut(self, loop: Loop, swap: dict[Value, Value]) -> list[Stmt]:
        """A loop for each run of rounds that call the same; a round alone is written out."""
        runs = [list(run) for _, run in groupby(loop.indices, lambda i: self.wanted(loop, i))]
        if len(runs) == 1:
            self.name(loop.body, {loop.var: loop.start})
            return [loop]
        out: list[Stmt] = []
        carried = list(loop.inits)
        for at, run in enumerate(runs):
            if len(run) == 1:
                body, seen = self.copied(loop, dict(zip(loop.params, carried, strict=True)), run[0])
                carried = [seen.get(v, v) for v in loop.yields]
                self.name(body, {})
                out += body
                continue
            params = [Value(v.name, v.type) for v in loop.params]
            body, seen = self.copied(loop, dict(zip(loop.params, params, strict=True)), None, fresh=at > 0)
            yields, results = (
                [seen.get(v, v) for v in loop.yields],
                [Value(v.name, v.type) for v in loop.results],
            )
            self.name(body, {loop.var: run[0]})
            stop = run[-1] + loop.step
            new = Loop(loop.var, run[0], stop, loop.step, carried, params, body, yields, results)
            rename_carried(new)
            carried = results
            out.append(new)
        swap.update(zip(loop.results, carried, strict=True))
        return out

    def copied(
        self, loop: Loop, seen: dict[Value, Value], i: int | None, fresh: bool = True
    ) -> tuple[list[Stmt], dict[Value, Value]]:
        """The body of ``loop`` once more, for round ``i`` or for any; which value stands for which."""
        carried = {p.name for p in loop.params} if i is None else set[str]()
        out: list[Stmt] = []

        def index(x: Index) -> Index:
            return x if i is None else Index(None, x.at({loop.var: i}))

        for s in loop.body:
            results = list(s.results)
            slots = [Slot(x.stack, index(x.index)) for x in s.slots] if isinstance(s, Call) else []
            for v in results[: len(results) - len(slots)]:
                name = v.name if v.name in carried or not fresh else take_name(v.name, self.taken)
                seen[v] = Value(name, v.type, v.buffer)
            for v, x in zip(results[len(results) - len(slots) :], slots, strict=True):
                seen[v] = Value(str(x), v.type, v.buffer)
            made = [seen[v] for v in results]
            if isinstance(s, Call):
                args = [seen.get(a, a) for a in s.args]
                reads = [Slot(x.stack, index(x.index)) for x in s.reads]
                at = index(s.index) if s.index else None
                out.append(Call(s.callee, at, args, slots, made, s.loc, reads))
            elif isinstance(s, Node):
                given = [seen.get(a, a) if isinstance(a, Value) else a for a in s.args]
                out.append(Node(s.op, given, dict(s.attrs), made, s.loc, s.made_by))
        return out, seen
