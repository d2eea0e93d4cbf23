"""What looks back at earlier tokens reads them from a cache: keys and values in pages, states in slots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Literal

from irloom.ir.dims import sym
from irloom.ir.elem import CACHES, ELEMS, SEQS, Elem, Paged, State
from irloom.ir.errors import PipelineError
from irloom.ir.graph import Builder, Call, Func, Index, Loop, Module, Node, Param, Slot, Stmt, Value
from irloom.ir.op import Op
from irloom.ir.ops import (
    attention,
    block_index,
    kv_append,
    paged_attention,
    paged_block_index,
    paged_partial_attention,
    paged_sparse_index,
    partial_attention,
    slice_,
    sparse_index,
)
from irloom.ir.ops.attention import reach
from irloom.ir.types import Type

from .core import Changes, NoMatch, Pass, spend
from .lent import Calls, Kept, drop_unused, lend, own
from .near_miss import NearMiss, if_asked
from .roll import count_rounds, rename_carried

PAGES = (1, 65536)
"""The range of a dim of pages or slots, until ``kv-plan`` knows better."""
ATTENDS = {attention: paged_attention, partial_attention: paged_partial_attention}
"""Ops on keys and values, and their form that reads a cache."""
Producers = Mapping[Value, Stmt]
"""The statement that makes each value."""
INDEXES = {sparse_index: paged_sparse_index, block_index: paged_block_index}
"""Ops on keys alone."""


@dataclass(frozen=True)
class KvCache(Pass):
    """Give whatever looks back at earlier tokens a cache to read them from.

    ``attention(q, k, v, seqs)`` becomes ``kv_append`` and ``paged_attention`` on keys and values in pages,
    and a recurrent op its ``carried`` twin on the states of sequences. A function gets a parameter per cache,
    and returns the cache that holds this step too. Attentions over the same keys and values share one; so do
    those of a later layer, which is lent the cache and keeps none. Where values are the keys or their first
    features, as with absorbed latents, only keys are kept; of blocks of tokens that one entry stands for,
    that entry (``stride``). The caches of called functions are one stack in ``main``, ``kv: caches[n]``, in
    order of the calls. Attention with a window gets a cache that need not keep more than the window; each
    window has page counts of its own (``P512``), for its pages are a pool of their own. States live in slots,
    ``N`` of them.

    ``elem`` is what keys and values are stored as (theirs when absent; in f8e4m3, of which half as many bytes
    are read as of bf16, what is beyond 448 is stored as that), ``page`` how many tokens a page
    holds, ``snapshot`` how many tokens lie between two states that are kept for prefixes.
    """

    elem: Literal["f32", "f16", "bf16", "f8e4m3"] | None = None
    page: int = 16
    snapshot: int = 256

    after: ClassVar[tuple[str, ...]] = ("raise", "outline")
    before: ClassVar[tuple[str, ...]] = ("kv-plan", "plan-memory")

    def budget(self) -> float:
        """Keys and values that are rounded to ``elem`` move what attends to them by as much."""
        return {"f16": 2e-3, "bf16": 2e-2, "f8e4m3": 0.1}.get(self.elem or "", 0.0)

    def run(self, m: Module) -> Changes:
        """Give every such op a cache; near misses are attentions that keep none, with the reason."""
        for name in ("page", "snapshot"):
            if (value := getattr(self, name)) < 1:
                raise PipelineError(f"kv-cache: option `{name}` is {value}", hint="at least 1")
        changes = Changes()
        caches = {f.name: [kept for kept in self.wanted(f, changes) if spend()] for f in m.funcs.values()}
        lend(m, caches)
        _thread(m, caches)
        for f in m.funcs.values():
            changes.places += _rewrite(m, f, caches[f.name])
        if not any(caches.values()):
            changes.near_misses += if_asked("", "no op of the program looks back at earlier tokens")
        if any(kept.lent for each in caches.values() for kept in each):
            drop_unused(m)
        return changes

    def holds(self, m: Module) -> str | None:
        without = [(f, n) for f in m.funcs.values() for n in f.nodes if _looks_back(n.op)]
        return f"{without[0][0].name}.{without[0][1].results[0].name} reads no cache" if without else None

    def wanted(self, f: Func, changes: Changes) -> list[Kept]:
        """The caches that a function's ops ask for, in the order of the ops."""
        groups: dict[tuple[Any, ...] | Node, list[Node]] = defaultdict(list)
        for n in f.nodes:
            if n.op in ATTENDS:
                groups[*n.values[1:4], n.attrs.get("stride", 1)].append(n)
            elif _looks_back(n.op):
                groups[n].append(n)
        kept, producers = list[Kept](), f.producers()
        for nodes in groups.values():
            try:
                t = self.type(producers, nodes)
            except NoMatch as why:
                place, loc = f"{f.name}.{nodes[0].result.name}", nodes[0].loc
                changes.near_misses.append(NearMiss(place, str(why), loc=loc))
                continue
            kept.append(Kept(t, nodes))
        return kept

    def type(self, producers: Producers, nodes: list[Node]) -> Type:
        """The type of the cache that serves these nodes; ``NoMatch`` where there is none."""
        if nodes[0].op in ATTENDS:
            return self.tokens(producers, nodes)
        return self.keys(nodes[0]) if nodes[0].op in INDEXES else self.state(nodes[0])

    def tokens(self, producers: Producers, nodes: list[Node]) -> Type:
        """The type of the cache that serves these attentions; ``NoMatch`` where there is none."""
        k, v = (x.type for x in nodes[0].values[1:3])
        elem = ELEMS[self.elem] if self.elem else k.elem
        if not isinstance(elem, Elem):
            raise NoMatch(f"keys are {k}, which a cache cannot hold")
        features = v.dims[-1]
        if not isinstance(features, int):
            raise NoMatch(f"values are {v}, and a cache needs to know their features")
        values = 0 if _leads(producers, nodes[0]) else None if features == k.dims[-1] else features
        windows = [reach(n.attrs) for n in nodes]
        window = None if None in windows else max(w for w in windows if w is not None)
        return self.pages(k, Paged(elem, self.page, window, values), nodes[0])

    def keys(self, n: Node) -> Type:
        """The type of the cache of an indexer's keys."""
        k = n.values[1].type
        elem = ELEMS[self.elem] if self.elem else k.plain
        return self.pages(k, Paged(elem, self.page, None, 0), n)

    def pages(self, k: Type, paged: Paged, n: Node) -> Type:
        """The cache of keys ``k`` that ``n`` reads; each pool counts its pages with a dim of its own."""
        stride = n.attrs.get("stride", 1)
        assert isinstance(stride, int)
        paged = replace(paged, page=self.page * stride, stride=stride)
        tail = f"s{stride}" if stride > 1 else "" if paged.window is None else str(paged.window)
        return Type(paged, (sym(f"P{tail}"), *k.dims[1:]), (None, *k.axes[1:]))

    def state(self, n: Node) -> Type:
        """The type of the states of a recurrent op."""
        one: Type = n.op.hooks["state"](n.operands, n.attrs)
        return Type(State(one.plain, self.snapshot), (sym("N"), *one.dims))


def _looks_back(op: Op) -> bool:
    """Whether an op sees earlier tokens, and only those of this step."""
    return op in ATTENDS or op in INDEXES or op.carried is not None


def _rewrite(m: Module, f: Func, caches: list[Kept]) -> list[str]:
    """Let the ops of one function use its caches, first its own and then those that it is lent."""
    names, done = Builder(f), list[str]()
    firsts = [n.values[2] for kept in caches for n in kept.nodes if n.op in ATTENDS and _keys_only(kept)]
    for at, kept in enumerate(sorted(caches, key=lambda kept: bool(kept.lent))):
        tail = f"_{at}" if len(caches) > 1 else ""
        p = Param(names.fresh(f"kv{tail}"), kept.type)
        f.params.insert(len(f.data), p)
        if kept.lent:
            after = _attend(f, kept, p)
        else:
            after = (_carry if isinstance(kept.type.elem, State) else _page)(f, kept, p, names, f"kv1{tail}")
        m.dims.setdefault(str(kept.type.dims[0]), PAGES)
        readers = ", ".join(n.results[0].name for n in kept.nodes)
        done.append(f"{f.name}.{readers}: reads {after.name}, {kept.type}{', lent' if kept.lent else ''}")
    _drop_slices(f, firsts)
    return done


def _keys_only(kept: Kept) -> bool:
    """Whether values are the first features of keys, and read as such."""
    return isinstance(kept.type.elem, Paged) and kept.type.elem.values == 0


def _drop_slices(f: Func, values: Sequence[Value]) -> None:
    """Take out the slices that made values of keys, where nothing reads them any more."""
    producers, readers = f.producers(), f.readers()
    made = {producers.get(v) for v in values if v not in readers and v not in f.returns}
    f.body = [s for s in f.body if s not in made or not isinstance(s, Node) or s.op is not slice_]


def _leads(producers: Producers, n: Node) -> bool:
    """Whether an attention's values are its keys, or the first features of these."""
    _, k, v = n.values[:3]
    if v is k:
        return True
    made = producers.get(v)
    if not isinstance(made, Node) or made.op is not slice_ or made.values[0] is not k:
        return False
    dim, start, step = (made.attrs[name] for name in ("dim", "start", "step"))
    return dim in (-1, 2) and start == 0 and step == 1


def _page(f: Func, kept: Kept, cache: Param, names: Builder, name: str) -> Value:
    """Append once, before the first reader; the cache that all of them read."""
    first, paged = kept.nodes[0], kept.type.elem
    assert isinstance(paged, Paged)
    k, v = first.values[1], first.values[2] if first.op in ATTENDS else None
    seqs = next(x for x in first.values if x.type.elem == SEQS)
    added: list[Stmt] = []
    with Builder(f, into=added, loc=first.loc, taken=names.taken) as b:
        b.name = name
        after: Value = kv_append(cache, k, None if paged.values == 0 else v, seqs)
    at = f.body.index(first)
    f.body[at:at] = added
    f.returns.append(after)
    return _attend(f, kept, after)


def _attend(f: Func, kept: Kept, cache: Value) -> Value:
    """Read keys and values from ``cache``, which holds those of this step."""
    for n in kept.nodes:
        if n.op in INDEXES:
            n.op, n.args = INDEXES[n.op], [n.args[0], cache, *n.args[2:]]
        else:
            values = n.values[2].type.dims[-1] if _keys_only(kept) else None
            n.op, n.args = ATTENDS[n.op], [n.args[0], cache, *n.args[3:]]
            n.attrs = {**n.attrs, "values": values}
    return cache


def _carry(f: Func, kept: Kept, cache: Param, names: Builder, name: str) -> Value:
    """The op goes on from the states in ``cache``; the cache that it makes of them."""
    (n,) = kept.nodes
    assert n.op.carried is not None
    at = n.op.carried.operands.index("states")
    n.op, n.args = n.op.carried, [*n.args[:at], cache, *n.args[at:]]
    after = Value(names.fresh(name), kept.type)
    n.results.append(after)
    f.returns.append(after)
    return after


def _thread(m: Module, caches: dict[str, list[Kept]]) -> None:
    """Hand each call of ``main`` its slots of one stack of caches, in the order in which calls run."""
    main = m.main
    stack = Param(Builder(main).fresh("kv"), Type(CACHES, (0,)))
    used = 0
    for s in main.body:
        width = sum(len(own(caches[c.callee])) for c in _calls(s))
        if isinstance(s, Loop) and (width % s.step or (width and used < s.start)):
            count_rounds(s)
        free = _places(s, used)
        for c in _calls(s):
            for kept in own(caches[c.callee]):
                slot = Slot(stack, next(free))
                c.slots.append(slot)
                c.results.append(Value(str(slot), kept.type))
        used += width * (len(s.indices) if isinstance(s, Loop) else 1)
    _lend(m, caches)
    for s in main.body:
        if isinstance(s, Loop):
            rename_carried(s)
    if used:
        stack.type = Type(CACHES, (used,))
        main.params.insert(len(main.data), stack)
        main.returns.append(stack)


def _lend(m: Module, caches: dict[str, list[Kept]]) -> None:
    """Let calls read the slots of those that made their keys and values."""
    calls = Calls.of(m.main)
    for c in calls.loop:
        for kept in caches[c.callee]:
            found = calls.lender(m, c, kept, caches) if kept.lent else None
            if found is not None:
                lender, i = found
                c.reads.append(lender.slots[i])


def _places(s: Stmt, used: int) -> Iterator[Index]:
    """Where the caches of a statement go, in the order of its calls, when ``used`` slots are taken.

    A loop that steps by ``n`` fills slots ``n`` at a time: one in every round, for as many rounds as it has.
    """
    if not isinstance(s, Loop):
        yield from (Index(None, at) for at in count(used))
        return
    for at in count():
        block, place = divmod(at, s.step)
        yield Index(s.var, used + block * s.step * len(s.indices) + place - s.start)


def _calls(s: Stmt) -> list[Call]:
    """The calls that a statement of ``main`` makes."""
    body = s.body if isinstance(s, Loop) else [s]
    return [c for c in body if isinstance(c, Call)]
