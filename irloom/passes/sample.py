"""Seeded inputs and weights for a program: what it takes to run any module without a checkpoint.

Symbols get small sizes, tokens are split over several sequences, caches hold random keys and values in pages
that lie in no order. The same seed gives the same inputs, so two programs can be compared on them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.dims import Dim, evaluate, symbols
from irloom.ir.elem import CACHES, SEQS, Cached, State
from irloom.ir.errors import IRError
from irloom.ir.graph import Func, Module, Node, Param, Value
from irloom.ir.interp import cache_types
from irloom.ir.plan import page_of
from irloom.ir.seqs import PagedCache, Seqs, StateCache
from irloom.ir.types import Type
from irloom.ir.weight_expr import (
    Concat,
    Const,
    Reshape,
    Scale,
    Slice,
    Tensor,
    Transpose,
    WeightExpr,
    offsets,
    tensor_name,
)


@dataclass(frozen=True)
class Batch:
    """A step to try: how many tokens each sequence brings, and how many it has in the caches."""

    lengths: tuple[int, ...]
    past: tuple[int, ...]
    seed: int = 0

    def __str__(self) -> str:
        return f"{list(self.lengths)} tokens after {list(self.past)}"


INDEXED = {"embedding": (1, 0), "gather": (0, -1), "scatter": (0, -1), "expert_linear": (2, 0), "moe": (3, 0)}
"""Ops that index: which operand, and which dim of it."""

BATCHES = (Batch((1,), (3,), 1), Batch((5,), (0,), 2), Batch((3, 1, 4), (0, 20, 2), 3))


def entry(m: Module) -> Func:
    """``main``, or the only function."""
    return m.funcs["main"] if "main" in m.funcs else next(iter(m.funcs.values()))


def inputs(modules: Sequence[Module], batch: Batch) -> dict[str, Any]:
    """A value for every data parameter of the entries, by name: both sides of a comparison get the same."""
    stacks = [own_caches(m) for m in modules]
    if not stacks[0]:
        batch = Batch(batch.lengths, (0,) * len(batch.lengths), batch.seed)
    seqs = next((p.type for m in modules for p in entry(m).data if p.type.elem == SEQS), None)
    if seqs is not None:
        batch = _fitted(batch, *seqs.dims)
    caches = {name: types for stack in stacks for name, types in stack.items()}
    tables = page_tables([t for types in caches.values() for t in types], batch)
    env = sizes(modules, batch, seqs, tables)
    given: dict[str, Any] = {}
    for m in modules:
        for p in entry(m).data:
            if p.name in given:
                continue
            if p.type.elem == SEQS:
                given[p.name] = Seqs.of(batch.lengths, batch.past, tables)
            elif p.name in caches:
                made = [
                    random_cache(t, env, generator(batch.seed, p.name, i))
                    for i, t in enumerate(caches[p.name])
                ]
                given[p.name] = made if p.type.elem == CACHES else made[0]
            else:
                given[p.name] = _tensor(entry(m), p, env, generator(batch.seed, p.name))
    return given


def own_caches(m: Module) -> dict[str, list[Type]]:
    """The caches that the entry takes, by parameter; those of a stack in their order."""
    types = cache_types(m) if "main" in m.funcs else {}
    out = {p.name: [p.type] for p in entry(m).data if isinstance(p.type.elem, Cached)}
    for p in entry(m).data:
        if p.type.elem == CACHES:
            out[p.name] = [types[i] for i in range(int(str(p.type.dims[0])))]
    return out


def _fitted(batch: Batch, tokens: Dim, count: Dim) -> Batch:
    """The batch as a program with fixed sizes wants it."""
    n = count if isinstance(count, int) else len(batch.lengths) if not isinstance(tokens, int) else 1
    lengths, past = [batch.lengths[i % len(batch.lengths)] for i in range(n)], (batch.past * n)[:n]
    if isinstance(tokens, int):
        lengths = [tokens // n + (i < tokens % n) for i in range(n)]
    return Batch(tuple(lengths), past, batch.seed)


def page_tables(types: Sequence[Type], batch: Batch) -> dict[str, torch.Tensor]:
    """Page tables by pool; pages are handed out in a shuffled order, and two are left over."""
    pages: dict[str, int] = {}
    for t in types:
        assert isinstance(t.elem, Cached)
        size, own = pages.setdefault(t.elem.pool, page_of(t)), page_of(t)
        if size != own:
            raise IRError(f"caches of pool {t.elem.pool!r} have pages of {size} and of {own} tokens")
    out: dict[str, torch.Tensor] = {}
    for pool, page in pages.items():
        need = [-(-(n + past) // page) for n, past in zip(batch.lengths, batch.past, strict=True)]
        order = torch.randperm(sum(need) + 2, generator=generator(batch.seed, pool))
        rows = [order[sum(need[:i]) : sum(need[: i + 1])] for i in range(len(need))]
        out[pool] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).int()
    return out


def sizes(
    modules: Sequence[Module], batch: Batch, seqs: Type | None, tables: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """A size for every symbol: tokens and sequences as the batch says, enough pages, odd for the rest."""
    names = {n: r for m in modules for n, r in m.dims.items()}
    env: dict[str, int] = {}
    for d, n in zip(seqs.dims if seqs else (), (sum(batch.lengths), len(batch.lengths)), strict=False):
        env.update(dict.fromkeys(symbols(d), n))
    most = max((int(t.max()) + 3 for t in tables.values()), default=0)
    for i, (name, (low, high)) in enumerate(names.items()):
        size = sum(batch.lengths) if name == "T" else len(batch.lengths) if name == "S" else 3 + 2 * i
        env.setdefault(name, max(min(max(size, low), high), most))
    return env


def generator(seed: int, name: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of their own for each name."""
    digest = hashlib.blake2b(f"{seed}:{name}:{index}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


def random_cache(t: Type, env: Mapping[str, int], g: torch.Generator) -> PagedCache | StateCache:
    """A cache full of random numbers."""
    assert isinstance(t.elem, Cached)
    dims = [evaluate(d, env) for d in t.dims]
    if isinstance(t.elem, State):
        return StateCache(torch.randn(dims, generator=g).to(t.elem.elem.torch), t.elem.every)
    pages, heads, dim = dims
    k, v = (
        torch.randn(pages, t.elem.entries, heads, d, generator=g).to(t.elem.elem.torch)
        for d in (dim, dim if t.elem.values is None else t.elem.values)
    )
    return PagedCache(k, v, t.elem.pool, stride=t.elem.stride)


def _tensor(f: Func, p: Param, env: Mapping[str, int], g: torch.Generator) -> torch.Tensor:
    elem, dims = p.type.plain, [evaluate(d, env) for d in p.type.dims]
    if elem.kind == "float":
        return torch.randn(dims, generator=g).to(elem.torch)
    high = 2 if elem.kind == "bool" else bound(f, p)
    return torch.randint(high, dims, generator=g).to(elem.torch)


def bound(f: Func, p: Value) -> int:
    """Below what a parameter of integers must stay: the rows of what it indexes."""
    for s in f.body:
        if isinstance(s, Node) and s.op.name in INDEXED and p in s.values:
            operand, dim = INDEXED[s.op.name]
            table = s.args[operand]
            assert isinstance(table, Value)
            return int(str(table.type.dims[dim]))
    return 16


def random_weights(modules: Sequence[Module], seed: int = 0) -> RandomCheckpoint:
    """A checkpoint of seeded random tensors with the names that the modules' weights have."""
    return RandomCheckpoint(seed, weight_dims(modules))


def weight_dims(modules: Sequence[Module]) -> dict[str, tuple[int, ...]]:
    """The tensors that the modules' weights are made of, and their dims as far as the weights tell."""
    dims: dict[str, tuple[int, ...]] = {}
    for p, index in (x for m in modules for x in bindings(m)):
        assert p.weight is not None
        _infer(p.weight, tuple(int(str(d)) for d in p.type.dims), index, dims)
    return dims


def bindings(m: Module) -> Iterator[tuple[Param, int | None]]:
    """Every weight of a module with each layer index it is bound at; 0 where nothing calls the function."""
    layers: dict[str, list[int | None]] = {}
    for call, index, _ in m.calls():
        layers.setdefault(call.callee, []).append(index)
    for f in m.funcs.values():
        for p in f.weights:
            for index in layers.get(f.name, [layer_of(f)]):
                yield p, index


def layer_of(f: Func) -> int | None:
    """The index with which to run a function on its own: the least where its weights are bound per layer."""
    read = {at for p in f.weights for at in offsets(p.weight)}
    return max(0, -min(read)) if read else None


def _infer(e: WeightExpr, dims: tuple[int, ...], index: int | None, out: dict[str, tuple[int, ...]]) -> None:
    """Note the dims of the tensors in an expression that has ``dims``; what is known already is kept."""
    match e:
        case Tensor(name):
            old = out.setdefault(tensor_name(name, index), dims)
            if len(old) == len(dims):  # several slices of one tensor: it is as long as the furthest
                out[tensor_name(name, index)] = tuple(map(max, old, dims))
        case Const():
            pass
        case Transpose(x):
            _infer(x, (*dims[:-2], dims[-1], dims[-2]), index, out)
        case Slice(x, dim, _, stop):
            _infer(x, (*dims[:dim], stop, *dims[dim + 1 :]), index, out)
        case Scale(x, by, dim):
            _infer(x, dims, index, out)
            _infer(by, dims[dim : dim + 1], index, out)
        case Concat(parts, dim):
            known = [_known(x, dim, index, out) for x in parts]
            rest, unknown = dims[dim] - sum(k or 0 for k in known), known.count(None)
            for x, k in zip(parts, known, strict=True):
                if k is None:  # nothing says how long each is: about the same, and all of it
                    k = rest // unknown
                    rest, unknown = rest - k, unknown - 1
                _infer(x, (*dims[:dim], k, *dims[dim + 1 :]), index, out)
        case Reshape(x, whole):
            flat = dims if _is_known(x, index, out) else (math.prod(whole),)
            _infer(x, _said(x) or flat, index, out)
        case _:
            _infer(e.x, dims, index, out)


def _said(e: WeightExpr) -> tuple[int, ...] | None:
    """The dims of an expression where it says them itself."""
    match e:
        case Reshape(_, dims):
            return dims
        case Transpose(x) if (dims := _said(x)) is not None:
            return (*dims[:-2], dims[-1], dims[-2])
        case _:
            return None


def _known(e: WeightExpr, dim: int, index: int | None, out: Mapping[str, tuple[int, ...]]) -> int | None:
    if isinstance(e, Tensor):
        dims = out.get(tensor_name(e.name, index))
        return dims[dim] if dims and dim < len(dims) else None
    return e.stop - e.start if isinstance(e, Slice) and e.dim == dim else None


def _is_known(e: WeightExpr, index: int | None, out: Mapping[str, tuple[int, ...]]) -> bool:
    return isinstance(e, Tensor) and tensor_name(e.name, index) in out
