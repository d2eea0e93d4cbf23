"""Decide how caches are stored: in pages or in slots, how long these are, and how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from irloom.ir.dims import Dim, Sym, symbols
from irloom.ir.elem import SEQS, Cached, Paged, State
from irloom.ir.errors import PipelineError
from irloom.ir.graph import Loop, Module, Stmt, Value
from irloom.ir.plan import KVPlan, kv_plan, read_bytes, show_bytes

from .core import Changes, Pass, spend

LAYOUTS = ("paged", "linear")
PAGE, SNAPSHOT = 16, 256


@dataclass(frozen=True)
class KvPlan(Pass):
    """Set the page size of every cache, and the ranges of ``T``, ``S`` and ``P`` that follow from the limits.

    ``page`` is in tokens, and so is ``snapshot``: how far apart states are kept for prefixes. ``context`` is
    the longest sequence, in tokens. With ``layout="linear"`` a sequence has one page of every cache, a *slot*
    as long as ``context``; windows give nothing back, so all caches share one pool. ``memory`` is what all
    caches may take together (``"2GiB"``, or bytes): pages are those of the sequences of full length that fit,
    at most ``max_seqs``; without it, those of ``max_seqs``. ``max_tokens`` is the token budget of a step.
    What is absent stays as the module says. The plan itself, a pool of pages per attention window and one of
    states, is ``irloom.ir.plan.kv_plan(m)``; its ``table()`` is for people.
    """

    page: int = PAGE
    snapshot: int = SNAPSHOT
    memory: int | str | None = None
    context: int = 8192
    max_seqs: int | None = None
    max_tokens: int | None = None
    layout: str = "paged"

    after: ClassVar[tuple[str, ...]] = ("kv-cache",)
    before: ClassVar[tuple[str, ...]] = ("plan-memory",)

    def _check(self) -> None:
        for name in ("page", "snapshot", "memory", "context", "max_seqs", "max_tokens"):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise PipelineError(f"kv-plan: option `{name}` is {value}", hint="at least 1")
        if self.layout not in LAYOUTS:
            raise PipelineError(
                f"kv-plan: option `layout` is {self.layout!r}", hint=f"one of {', '.join(LAYOUTS)}"
            )
        for name, usual in (("page", PAGE), ("snapshot", SNAPSHOT)):
            if self.linear and getattr(self, name) != usual:
                raise PipelineError(
                    f"kv-plan: option `{name}` is {getattr(self, name)}, but a slot holds a whole sequence",
                    hint="`context` says how long that is",
                )

    @property
    def linear(self) -> bool:
        """Whether a sequence has one slot in each cache."""
        return self.layout == "linear"

    def stored(self, elem: Cached) -> Cached:
        """A cache as it is stored with these options."""
        if isinstance(elem, State):
            return replace(elem, every=self.context if self.linear else self.snapshot)
        if not self.linear:
            return replace(elem, page=self.page * elem.stride)
        return replace(elem, page=-(-self.context // elem.stride) * elem.stride, window=None)

    def run(self, m: Module) -> Changes:
        """One change per pool, or one for limits of steps where nothing is kept.

        ``PipelineError`` where the memory does not hold one sequence.
        """
        self._check()
        if not spend():
            return Changes()
        for v in _caches(m):
            v.type = v.type.with_elem(self.stored(_cached(v)))
        if self.linear:
            _share_dims(m)
        plan, limits = kv_plan(m), dict(m.dims)
        t, s = _steps(m)
        if self.max_tokens is not None:
            _limit(m, t, self.max_tokens)
        most = self.max_seqs if self.max_seqs is not None else m.dims.get(s, (1, 1))[1]
        tokens = m.dims.get(t, (1, 1))[1]
        count = self.count(plan, most, tokens)
        if self.max_seqs is not None or count < most:
            _limit(m, s, count)
        changes = Changes()
        for pool, group in zip(plan.pools(self.context, count, tokens), plan.groups, strict=True):
            for dim in {d for t in group.caches.values() for d in symbols(t.dims[0])}:
                _limit(m, dim, pool.pages)
            size, each = show_bytes(pool.page_bytes * pool.pages), f"{show_bytes(group.token_bytes)} a token"
            if group.recurrent or self.linear:
                each = f"{show_bytes(group.page_bytes)} a sequence"
            count_of = f"{pool.pages} {'slots' if self.linear else 'pages'}"
            what = f"{len(group.caches)} caches, {each}, {count_of}, {size}"
            changes.places.append(f"main.{pool.name}: {what}")
        if m.dims != limits and not changes.places:
            changes.places.append(f"main: {tokens} tokens and {count} sequences a step")
        return changes

    def holds(self, m: Module) -> str | None:
        for f in m.funcs.values():
            for p in (p for p in f.data if isinstance(p.type.elem, Paged)):
                wanted = self.stored(_cached(p))
                if p.type.elem != wanted:
                    return f"{f.name}.{p.name} is {p.type.elem}, not {wanted}"
        return None

    def count(self, plan: KVPlan, most: int, tokens: int) -> int:
        """How many sequences of full length get pages."""
        if self.memory is None or not plan.groups:
            return most
        memory = read_bytes(self.memory)
        fit = plan.fits(memory, self.context, tokens)
        if not fit:
            each = show_bytes(plan.bytes(self.context, 1, tokens))
            raise PipelineError(
                f"kv-plan: memory is {show_bytes(memory)}, {self.context} tokens of one sequence take {each}",
                hint="more memory, a smaller context, or kv-cache(elem=f16)",
            )
        return min(most, fit)


def _caches(m: Module) -> Iterator[Value]:
    """Every value that is a cache."""
    for f in m.funcs.values():
        yield from (v for v in (*f.params, *_values(f.body)) if isinstance(v.type.elem, Cached))


def _values(body: list[Stmt]) -> Iterator[Value]:
    for s in body:
        if isinstance(s, Loop):
            yield from _values(s.body)
        yield from s.results


def _share_dims(m: Module) -> None:
    """Caches that share a pool now count its slots with one dim: the first, by name, that one had."""
    dims: dict[str, set[Dim]] = {}
    for v in _caches(m):
        dims.setdefault(_cached(v).pool, set()).add(v.type.dims[0])
    for v in _caches(m):
        slots = min(dims[_cached(v).pool], key=str)
        v.type = v.type.with_dims((slots, *v.type.dims[1:]), v.type.axes)
    for dim in {d for each in dims.values() for d in each if d != min(each, key=str)}:
        m.dims.pop(str(dim), None)


def _cached(v: Value) -> Cached:
    assert isinstance(v.type.elem, Cached)
    return v.type.elem


def _steps(m: Module) -> tuple[str, str]:
    """The symbols of tokens and sequences in flight, from the type of ``seqs``."""
    for p in m.main.data:
        if p.type.elem == SEQS:
            t, s = (str(d) if isinstance(d, Sym) else "" for d in p.type.dims)
            return t, s
    return "", ""


def _limit(m: Module, dim: str, most: int) -> None:
    if dim in m.dims:
        m.dims[dim] = (min(m.dims[dim][0], most), most)
