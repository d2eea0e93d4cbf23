"""Project queries, keys and values with one linear instead of three.

The linears that read one value and lead to attention become one, with the rows of their weights (and
biases) joined; ``split`` cuts its result apart. Weights are still those of the checkpoint: joining them is
written down and happens when an engine is built. Quantization comes after, on the joined weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Func, Module, Node, Stmt, Value
from irloom.ir.ops import attention, kv_append, linear, matmul, paged_attention, split

from .core import Changes, NoMatch, Pass, spend
from .draft import Draft
from .near_miss import NearMiss, if_asked
from .rewrite import Site
from .siblings import common_loc, join, join_biases

_READS = {attention: (0, 1, 2), paged_attention: (0,), kv_append: (1, 2)}
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
                try:
                    changes.places += _fuse(m, d, group)
                except NoMatch as e:
                    place, loc = f"{f.name}.{group[0].result.name}", group[0].loc
                    changes.near_misses.append(NearMiss(place, str(e), loc=loc))
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


def _fuse(m: Module, d: Draft, group: list[Node]) -> list[str]:
    site = Site(m, d, group[0])
    args = [[*n.args, None][:3] for n in group]
    x = group[0].values[0]
    weights = [w for _, w, _ in args if isinstance(w, Value)]
    biases = [b if isinstance(b, Value) else None for _, _, b in args]
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
