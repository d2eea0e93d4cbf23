"""Attend to latents instead of the keys and values made of them: multi-head latent attention, absorbed.

Where keys and values are linear in one latent per token (DeepSeek-V2, 2024), ``q . (W_k c)`` is
``(W_k^T q) . c`` and ``sum p (W_v c)`` is ``W_v (sum p c)``. So the weights move to the queries and to the
result, and all heads attend to one key: the latent, then the features that heads share (the rotary part).
Its first features are the values. The cache keeps these alone, for DeepSeek-V3 576 numbers a token and layer
instead of 40,960.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch

from irloom.ir.elem import Elem
from irloom.ir.graph import Module, Node, Param, Stmt, Value
from irloom.ir.ops import attention, concat, head_linear, linear, reshape, slice_, split
from irloom.ir.types import Type
from irloom.ir.weight_expr import Reshape, Slice, Transpose, WeightExpr

from .core import Changes, NoMatch, Pass, spend
from .dedupe import drop_inputs
from .draft import Draft
from .near_miss import NearMiss, tells_all
from .origins import Origins
from .rewrite import Site


@dataclass(frozen=True)
class AbsorbMla(Pass):
    """No options. Without this pass the cache holds the keys and values of every head: the expanded form.

    Found by structure: some features of the keys are the same for all heads, the others and the values are
    linears of one value, however they were reshaped, joined and repeated. Weights are those of the
    checkpoint, cut by heads. It is done where the cache shrinks by more than the work on each cached token
    grows; that holds for latents, and does not where heads read the hidden state itself.
    """

    after: ClassVar[tuple[str, ...]] = ("canonicalize", "raise", "outline")
    before: ClassVar[tuple[str, ...]] = ("fuse-qkv", "quantize", "kv-cache", "plan-memory")

    def run(self, m: Module) -> Changes:
        """One change per attention; near misses are attentions to latents that stay as they are."""
        changes = Changes()
        for f in list(m.funcs.values()):
            d = Draft(f)
            for n in [n for n in f.nodes if n.op is attention]:
                try:
                    changes.places += _absorb(m, d, n)
                except NoMatch as why:
                    changes.near_misses.append(NearMiss(f"{f.name}.{n.result.name}", str(why), loc=n.loc))
            d.commit()
            if changes:
                drop_inputs(m, f)
        return changes


@dataclass(frozen=True)
class _Up:
    """Features of heads that are a linear of ``latent`` [T, r].

    Its weight is rows of ``param``: ``expr`` makes [heads, features, r] of them.
    """

    latent: Value
    param: Param
    expr: WeightExpr
    heads: int
    features: int

    @property
    def width(self) -> int:
        """Features of the latent."""
        return int(str(self.latent.type.dims[-1]))

    def weight(self, site: Site, name: str, transposed: bool = False) -> Param:
        """The weight of every head, [heads, features, r] or [heads, r, features]."""
        tail = (self.width, self.features) if transposed else (self.features, self.width)
        t = Type(self.param.type.elem, (self.heads, *tail))
        return site.new_weight(name, t, Transpose(self.expr) if transposed else self.expr)


@dataclass(frozen=True)
class _Mla:
    """How an attention's keys and values come from latents.

    ``parts`` are the features of a key in order: so many that are the same for all heads, with their value,
    or so many that ``keys`` makes, with None.
    """

    keys: _Up
    values: _Up
    parts: list[tuple[int, Value | None]]

    @property
    def kept(self) -> int:
        """Features of a token that the absorbed form keeps."""
        return self.keys.width + sum(n for n, shared in self.parts if shared is not None)

    @property
    def expanded(self) -> int:
        """Features of a token that the expanded form keeps."""
        return self.keys.heads * (sum(n for n, _ in self.parts) + self.values.features)

    @property
    def work(self) -> int:
        """Multiply-adds of a token with a cached token, in the absorbed form; ``expanded`` in the other."""
        return self.keys.heads * (self.kept + self.keys.width)


def _absorb(m: Module, d: Draft, n: Node) -> list[str]:
    """Rewrite one attention; nothing where its values come from no latent."""
    origins = Origins.of(d)
    found = _find(origins, n)
    if found is None and tells_all():
        raise NoMatch("its keys and values are no linears of a latent")
    if found is None:
        return []
    smaller, more = found.expanded / found.kept, found.work / found.expanded
    if smaller <= more:
        raise NoMatch(f"its cache would be {smaller:.1f} times smaller, the work on it {more:.1f} times more")
    if not spend():
        return []
    site, made = Site(m, d, n), list[Stmt]()
    with d.builder(made, n.loc):
        out = _attend(site, n, found)
    site.settle()
    d.insert(made, n)
    d.redirect(n.result, out)
    dead = [s for v in (*origins.seen, n.values[0], n.result) if (s := d.producer.get(v)) is not None]
    d.sweep(list(dict.fromkeys(dead)))
    d.rename(out, n.result.name)
    d.drop({found.keys.param, found.values.param})
    return [f"{d.func.name}.{out.name}: keeps {found.kept} features a token instead of {found.expanded}"]


def _attend(site: Site, n: Node, found: _Mla) -> Value:
    """The absorbed form; the value that takes the place of the attention's."""
    (q, _, _), rest = n.args[:3], n.args[3:]
    assert isinstance(q, Value)
    tokens, r = q.type.dims[0], found.keys.width
    parts = dict(
        zip((i for i, _ in enumerate(found.parts)), _cut(site, q, [n for n, _ in found.parts]), strict=True)
    )
    at = next(i for i, (_, shared) in enumerate(found.parts) if shared is None)
    inward = head_linear(parts.pop(at), found.keys.weight(site, "absorbed_key_weight", transposed=True))
    rows = [
        reshape(v, dims=(tokens, size)) if v.type.rank != 2 else v for size, v in found.parts if v is not None
    ]
    query = (
        site.named("query", concat(site.named("absorbed", inward), *parts.values(), dim=-1))
        if rows
        else inward
    )
    key = concat(found.keys.latent, *rows, dim=-1) if rows else found.keys.latent
    latents = site.named("latents", reshape(key, dims=(tokens, 1, found.kept)))
    values = slice_(latents, dim=-1, stop=r)
    mixed = site.named("mixed", attention(query, latents, values, *rest, **n.attrs))
    return head_linear(mixed, found.values.weight(site, "absorbed_value_weight"))


def _cut(site: Site, q: Value, sizes: list[int]) -> tuple[Value, ...]:
    """The query's features in parts of ``sizes``: those that it was joined of, where they are these."""
    made = site.producer(q)
    if len(sizes) == 1:
        return (q,)
    joined = made.values if made is not None and made.op is concat and made.attrs["dim"] in (-1, 2) else []
    if [v.type.dims[-1] for v in joined] == sizes:
        return tuple(joined)
    return split(q, dim=-1, sizes=tuple(sizes))


def _find(origins: Origins, n: Node) -> _Mla | None:
    """What an attention's keys and values are made of; None where this is no attention to latents."""
    q, k, v = n.values[:3]
    keys, values = origins.trace(k), origins.trace(v)
    if keys is None or values is None or keys.shape[1] == 1:
        return None
    try:
        made = _up(origins, values)
    except NoMatch:
        return None
    if made.width >= made.heads * made.features:
        return None  # not a latent: heads read what is wider than they are
    parts = _parts(origins, keys)
    ups = [a for a, _, shared in parts if shared is None]
    if len(ups) != 1:
        raise NoMatch(f"{len(ups)} ranges of the key's features differ by head, not one")
    at, size = next((a, size) for a, size, shared in parts if shared is None)
    up = _up(origins, keys[:, :, at : at + size])
    if up.latent is not made.latent:
        raise NoMatch(f"keys are made of {up.latent.name}, values of {made.latent.name}")
    if q.type.dims[1] != up.heads:
        raise NoMatch(f"{q.type.dims[1]} query heads share {up.heads} heads of keys")
    return _Mla(up, made, [(size, shared) for _, size, shared in parts])


def _parts(origins: Origins, keys: torch.Tensor) -> list[tuple[int, int, Value | None]]:
    """Ranges of a key's features: where each starts, how long it is, its value where all heads share it."""
    same = (keys == keys[:, :1]).all(1).all(0)
    out: list[tuple[int, int, Value | None]] = []
    for shared, run in groupby(range(len(same)), key=lambda i: bool(same[i])):
        at = list(run)
        value = origins.find(keys[:, 0, at[0] : at[-1] + 1]) if shared else None
        if shared and value is None:
            raise NoMatch(
                f"the key's features {at[0]} to {at[-1]}, which heads share, are no value of their own"
            )
        out.append((at[0], len(at), value))
    return out


def _up(origins: Origins, numbers: torch.Tensor) -> _Up:
    """The linear that entries [tokens, heads, features] come from; ``NoMatch`` where they do not."""
    tokens, heads, features = numbers.shape
    leaf, _ = origins.source(int(numbers[0, 0, 0]))
    made = origins.producers.get(leaf)
    if not isinstance(made, Node) or made.op is not linear or leaf.type.rank != 2:
        raise NoMatch(f"{leaf.name} is no linear of a latent")
    if len(made.values) > 2:
        raise NoMatch(f"{leaf.name} has a bias, which a latent cannot hold")
    latent, w = made.values
    if (
        not isinstance(w, Param)
        or w.weight is None
        or not isinstance(w.type.elem, Elem)
        or latent.type.rank != 2
    ):
        raise NoMatch(f"{leaf.name} is no linear of a latent with a plain weight")
    total, r = (int(str(d)) for d in w.type.dims)
    rows = numbers - origins.leaves[leaf] - torch.arange(tokens)[:, None, None] * total
    start, step = int(rows[0, 0, 0]), int(rows[0, 1, 0] - rows[0, 0, 0])
    if not rows.equal(start + (torch.arange(heads)[:, None] * step + torch.arange(features)).expand_as(rows)):
        raise NoMatch(f"the heads are no even parts of {leaf.name}")
    inner = 0 if step == features else start % max(step, 1)
    first = start - inner
    if step < inner + features or first < 0 or first + heads * step > total:
        raise NoMatch(f"the heads are no even parts of {leaf.name}")
    expr = w.weight if heads * step == total else Slice(w.weight, 0, first, first + heads * step)
    expr = Reshape(expr, (heads, step, r))
    return _Up(
        latent, w, Slice(expr, 1, inner, inner + features) if features < step else expr, heads, features
    )
