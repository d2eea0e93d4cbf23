"""Project queries, keys and values with one linear instead of three.

The linears that read one value and lead to attention become one, with the rows of their weights (and
biases) joined; ``split`` cuts its result apart. Weights are still those of the checkpoint: joining them is
written down and happens when an engine is built. Quantization comes after, on the joined weight. Where only
some of them can be joined (one has no bias, as Whisper's keys; one is tied to another weight), those are.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Func, Module, Node, Stmt, Value
from irloom.ir.ops import (
    attention,
    kv_append,
    linear,
    matmul,
    paged_attention,
    paged_partial_attention,
    partial_attention,
    rope_append,
    split,
)

from .core import Changes, NoMatch, Pass, spend
from .draft import Draft
from .near_miss import NearMiss, if_asked
from .rewrite import Site
from .siblings import common_loc, join, join_biases, plain

_READS = {
    attention: (0, 1, 2),
    partial_attention: (0, 1, 2),
    paged_attention: (0,),
    paged_partial_attention: (0,),
    kv_append: (1, 2),
    rope_append: (0, 1, 2),
}
_STOPS = (linear, matmul, *_READS)


@dataclass(frozen=True)
class FuseQkv(Pass):
    """No options."""

    after = ("canonicalize", "raise")
    before = ("quantize", "plan-memory")

    def run(self, m: Module) -> Changes:
        changes = Changes()
        for f in m.funcs.values():
            d, groups = Draft(f), _groups(f)
            if not groups:
                attends = any(n.op in _READS for n in f.nodes)
                reason = "no two linears of one value lead to attention" if attends else "it has no attention"
                changes.near_misses += if_asked(f.name, reason)
            for group in groups:
                for part in _alike(m, d, group, changes):
                    changes.places += _fuse(m, d, part)
            d.commit()
        return changes


def _groups(f: Func) -> list[list[Node]]:
    """The linears that attention reads, by the value that they read, where that is the same for several."""
    wanted: set[Value] = set()
    found: dict[Value, list[Node]] = {}
    for n in reversed(f.nodes):
        if n.op is linear and n.result in wanted:
            x = n.args[0]
            assert isinstance(x, Value)
            found.setdefault(x, []).insert(0, n)
        elif n.op in _READS:
            wanted.update(a for i in _READS[n.op] if isinstance(a := n.args[i], Value))
        elif n.op not in _STOPS and wanted.intersection(n.results):
            wanted.update(n.values)
    return [group for group in reversed(found.values()) if len(group) > 1]


def _alike(m: Module, d: Draft, group: list[Node], changes: Changes) -> list[list[Node]]:
    """The linears of a group that can be one, in parts of one kind; the others are near misses."""
    kinds: dict[tuple[object, ...], list[Node]] = {}
    for n in group:
        weight, bias = _operands(n)
        try:
            for p in (weight, bias):
                if p is not None:
                    plain(Site(m, d, n), p)
        except NoMatch as why:
            changes.near_misses.append(_miss(d, n, str(why)))
            continue
        alike = [(p.type.elem, p.type.axes) if p else None for p in (weight, bias)]
        kinds.setdefault(tuple(alike), []).append(n)
    most = max(kinds.values(), key=len, default=list[Node]())
    for part in kinds.values():
        if len(part) == 1 and part is not most:
            changes.near_misses.append(_miss(d, part[0], _difference(part[0], most[0])))
    return [part for part in kinds.values() if len(part) > 1]


def _operands(n: Node) -> tuple[Value, Value | None]:
    """Weight and bias of a linear."""
    _, weight, bias = [*n.args, None][:3]
    assert isinstance(weight, Value)
    return weight, bias if isinstance(bias, Value) else None


def _difference(one: Node, other: Node) -> str:
    (w, b), (v, c) = _operands(one), _operands(other)
    if w.type.elem != v.type.elem or w.type.axes != v.type.axes:
        return f"{w.name} is {w.type}, {v.name} is {v.type}"
    if b is None or c is None:
        return f"it has {'a' if b else 'no'} bias, {other.result.name} has {'one' if c else 'none'}"
    return f"{b.name} is {b.type}, {c.name} is {c.type}"


def _miss(d: Draft, n: Node, why: str) -> NearMiss:
    return NearMiss(f"{d.func.name}.{n.result.name}", why, loc=n.loc)


def _fuse(m: Module, d: Draft, group: list[Node]) -> list[str]:
    site = Site(m, d, group[0])
    x = group[0].values[0]
    weights, biases = zip(*map(_operands, group), strict=True)
    names = [n.result.name for n in group]
    weight = join(site, "qkv_weight", weights)
    bias = join_biases(site, "qkv_bias", biases)
    if not spend():
        return []
    made: list[Stmt] = []
    with d.builder(made, common_loc([n.loc for n in group])):
        y = linear(x, weight, bias)
        parts = split(site.named("qkv", y), dim=-1, sizes=tuple(w.type.dims[0] for w in weights))
    site.settle()
    d.insert(made, group[0])
    for n, part, name in zip(group, parts, names, strict=True):
        d.redirect(n.result, part)
        d.remove(n)
        d.rename(part, name)
    d.drop([*weights, *biases])
    return [f"{d.func.name}.{y.name}: {', '.join(names)} as one linear"]
