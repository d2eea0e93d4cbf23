"""Attention reads its keys and values from a cache in pages."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar, Literal

from irloom.ir.dims import sym
from irloom.ir.elem import CACHES, ELEMS, Elem, Paged
from irloom.ir.graph import Builder, Call, Func, Index, Loop, Module, Node, Param, Slot, Stmt, Value
from irloom.ir.ops import kv_append, paged_attention
from irloom.ir.ops.attention import reach
from irloom.ir.types import Type

from .core import Changes, NoMatch, Pass, spend
from .roll import rename_carried, unroll

PAGES = (1, 65536)
"""The range of a dim of pages, until ``kv-plan`` knows better."""


@dataclass(frozen=True)
class KvCache(Pass):
    """Turn ``attention(q, k, v, seqs)`` into ``kv_append`` and ``paged_attention`` on a cache value.

    A function gets a parameter per cache and returns the cache that holds this step too. Attentions over the
    same keys and values share one. The caches of called functions are one stack in ``main``, ``kv:
    caches[n]``, in order of the calls. Attention with a window gets a cache that need not keep more than the
    window; each window has page counts of its own (``P512``), for its pages are a pool of their own.

    ``elem`` is what keys and values are stored as (theirs when absent), ``page`` how many tokens a page
    holds.
    """

    elem: Literal["f32", "f16", "bf16"] | None = None
    page: int = 16

    after: ClassVar[tuple[str, ...]] = ("raise", "outline")
    before: ClassVar[tuple[str, ...]] = ("kv-plan", "plan-memory")

    def run(self, m: Module) -> Changes:
        """Give every attention a cache; near misses are attentions that keep none, with the reason."""
        changes = Changes()
        caches: dict[str, list[Type]] = {}
        for f in m.funcs.values():
            caches[f.name] = self.cache(m, f, changes)
        _thread(m.main, caches)
        return changes

    def cache(self, m: Module, f: Func, changes: Changes) -> list[Type]:
        """Rewrite the attentions of one function; the types of its caches, in order of its parameters."""
        groups: dict[tuple[Value, ...], list[Node]] = defaultdict(list)
        for n in f.nodes:
            if n.op.name == "attention":
                groups[tuple(n.values[1:4])].append(n)
        fitting: list[tuple[Type, list[Node]]] = []
        for nodes in groups.values():
            try:
                t = self.type(nodes)
            except NoMatch as why:
                changes.near_misses.append(f"{f.name}.{nodes[0].result.name}: {why}")
                continue
            if spend():
                fitting.append((t, nodes))
        names = Builder(f)
        for at, (t, nodes) in enumerate(fitting):
            tail = f"_{at}" if len(fitting) > 1 else ""
            p = Param(names.fresh(f"kv{tail}"), t)
            f.params.insert(len(f.data), p)
            kept = _rewrite(f, nodes, p, names, f"kv1{tail}")
            pages = str(t.dims[0])
            m.dims.setdefault(pages, PAGES)
            readers = ", ".join(n.result.name for n in nodes)
            changes.places.append(f"{f.name}.{readers}: reads {kept.name}, {t}")
        return [t for t, _ in fitting]

    def type(self, nodes: list[Node]) -> Type:
        """The type of the cache that serves these attentions; ``NoMatch`` where there is none."""
        _, k, v = (x.type for x in nodes[0].values[:3])
        if k.dims != v.dims or k.axes != v.axes:
            raise NoMatch(f"a cache holds keys and values of one shape, but k is {k} and v is {v}")
        elem = ELEMS[self.elem] if self.elem else k.elem
        if not isinstance(elem, Elem):
            raise NoMatch(f"keys are {k}, which a cache cannot hold")
        windows = [reach(n.attrs) for n in nodes]
        window = None if None in windows else max(w for w in windows if w is not None)
        pages = sym("P" if window is None else f"P{window}")
        return Type(Paged(elem, self.page, window), (pages, *k.dims[1:]), (None, *k.axes[1:]))


def _rewrite(f: Func, nodes: list[Node], cache: Param, names: Builder, name: str) -> Value:
    """Append once, before the first reader; the cache that they read."""
    first = nodes[0]
    added: list[Stmt] = []
    with Builder(f, into=added, loc=first.loc, taken=names.taken) as b:
        b.name = name
        kept: Value = kv_append(cache, *first.values[1:4])
    at = f.body.index(first)
    f.body[at:at] = added
    for n in nodes:
        n.op, n.args = paged_attention, [n.args[0], kept, *n.args[3:]]
    f.returns.append(kept)
    return kept


def _thread(main: Func, caches: dict[str, list[Type]]) -> None:
    """Hand each call of ``main`` its slots of one stack of caches, in the order in which calls run."""
    stack = Param(Builder(main).fresh("kv"), Type(CACHES, (0,)))
    body: list[Stmt] = []
    names = Builder(main)
    swap: dict[Value, Value] = {}
    used = 0
    for s in main.body:
        calls = [s] if isinstance(s, Call) else _calls(s) if isinstance(s, Loop) else []
        width = sum(len(caches[c.callee]) for c in calls)
        stmts: list[Stmt] = [s]
        if isinstance(s, Loop) and width and not (width == s.step and used >= s.start):
            stmts = [*unroll(s, names, swap)]
        for part in stmts:
            var, times = (part.var, len(part.indices)) if isinstance(part, Loop) else (None, 1)
            at = used - (part.start if isinstance(part, Loop) else 0)
            for c in [part] if isinstance(part, Call) else _calls(part) if isinstance(part, Loop) else []:
                for t in caches[c.callee]:
                    slot = Slot(stack, Index(var, at))
                    c.slots.append(slot)
                    c.results.append(Value(str(slot), t))
                    at, used = at + 1, used + times
        body += stmts
    main.body = body
    main.replace_uses(swap)
    for s in main.body:
        if isinstance(s, Loop):
            rename_carried(s)
    if used:
        stack.type = Type(CACHES, (used,))
        main.params.insert(len(main.data), stack)
        main.returns.append(stack)


def _calls(loop: Loop) -> list[Call]:
    return [s for s in loop.body if isinstance(s, Call)]
