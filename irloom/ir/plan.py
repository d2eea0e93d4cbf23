"""What a model needs at run time, decided before anything is built: the pools its caches live in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dims import symbols
from .elem import SEQS, Cached, Paged, State
from .errors import IRError
from .types import Type

if TYPE_CHECKING:
    from .graph import Module


STATES, CARRIED = "state", 2
"""The pool of states. A token reads the state after the one before it: as if a window held those two."""


@dataclass(frozen=True)
class Pool:
    """One set of pages that several caches share: a page id indexes all of those caches.

    ``page`` is in tokens, ``page_bytes`` counts one page over all caches of the pool. With a ``window`` a
    token at position ``p`` reads positions ``p - window + 1`` to ``p`` and pages before that are given back;
    ``None`` reads everything.

    A pool of recurrent states is ``cut``: one page, a *slot*, holds the states of a sequence after the last
    of its tokens, and no chunk of a sequence crosses a multiple of ``page``. So a full page is the state at
    its end, a snapshot to go on from. Its ``window`` is 2: the next token reads what the last one left.
    """

    name: str
    window: int | None
    page: int
    page_bytes: int
    pages: int
    cut: bool = False


@dataclass(frozen=True)
class CacheGroup:
    """The caches of one pool, which share page tables; ``caches`` maps a name (``kv[3]``) to a type."""

    name: str
    window: int | None
    page: int
    caches: dict[str, Type]

    @property
    def recurrent(self) -> bool:
        """Whether these are states of sequences, not keys and values of tokens."""
        return self.name == STATES

    @property
    def page_bytes(self) -> int:
        """One page, in all caches of the group; of states, those of one sequence."""
        return sum(_page_bytes(t) for t in self.caches.values())

    @property
    def token_bytes(self) -> float:
        """Keys and values of one token, while it is kept; states do not grow with tokens."""
        return 0.0 if self.recurrent else self.page_bytes / self.page

    def pages(self, context: int, seqs: int = 1, tokens: int = 1) -> int:
        """Pages that ``seqs`` sequences of ``context`` tokens hold, in steps of up to ``tokens`` new tokens.

        With a window a sequence holds the pages that its last token reads; the pages that the new tokens of a
        step read before those come on top, once for all sequences. Of states a sequence holds one, and two in
        a step that leaves a snapshot behind.
        """
        whole = -(-context // self.page)
        if self.window is None:
            return seqs * whole
        if self.recurrent:
            return seqs * min(whole, 2)
        kept = min(whole, -(-(self.window + self.page - 1) // self.page))
        return min(seqs * whole, seqs * kept - (1 - tokens) // self.page)


@dataclass(frozen=True)
class KVPlan:
    """The caches of a model, by pool: full attention, then windows, smallest first, then states."""

    groups: tuple[CacheGroup, ...]

    @property
    def token_bytes(self) -> float:
        """What one more token of a sequence costs, until windows give pages back."""
        return sum(g.token_bytes for g in self.groups)

    @property
    def state_bytes(self) -> int:
        """What the states of one sequence cost, however long it is."""
        return sum(g.page_bytes for g in self.groups if g.recurrent)

    def bytes(self, context: int, seqs: int = 1, tokens: int = 1) -> int:
        """What ``seqs`` sequences of ``context`` tokens hold, in steps of up to ``tokens`` new tokens."""
        return sum(g.pages(context, seqs, tokens) * g.page_bytes for g in self.groups)

    def fits(self, memory: int, context: int, tokens: int = 1) -> int:
        """How many sequences of ``context`` tokens fit in ``memory`` bytes."""
        each = self.bytes(context)
        count = memory // each if each else 0
        while count and self.bytes(context, count, tokens) > memory:
            count -= 1
        return count

    def pools(self, context: int, seqs: int, tokens: int = 1) -> tuple[Pool, ...]:
        """Pools for ``seqs`` sequences of ``context`` tokens."""
        counts = [g.pages(context, seqs, tokens) for g in self.groups]
        rows = zip(self.groups, counts, strict=True)
        return tuple(Pool(g.name, g.window, g.page, g.page_bytes, n, g.recurrent) for g, n in rows)

    def table(self, contexts: Sequence[int] = (1024, 8192, 32768)) -> str:
        """For people: a row per group, and what sequences of some lengths hold.

        ``page`` is in tokens; bytes are those of all caches of a group. A page of the states is a sequence's.
        """
        head = ["pool", "page", "caches", "each", "bytes/page", "bytes/token"]
        head += [f"{c} tokens" for c in contexts]
        rows = [head]
        for g in self.groups:
            tokens = list(dict.fromkeys(_token(t) for t in g.caches.values()))
            row = [g.name, str(g.page), str(len(g.caches)), " ".join(tokens), show_bytes(g.page_bytes)]
            row += [show_bytes(g.token_bytes), *(show_bytes(g.pages(c) * g.page_bytes) for c in contexts)]
            rows.append(row)
        if len(self.groups) > 1:
            count = sum(len(g.caches) for g in self.groups)
            total = [show_bytes(self.bytes(c)) for c in contexts]
            rows.append(["all", "", str(count), "", "", show_bytes(self.token_bytes), *total])
        return columns(rows)

    def to_json(self) -> dict[str, Any]:
        """For ``plan.json``."""
        sizes = {"token_bytes": self.token_bytes, "state_bytes": self.state_bytes}
        return {**sizes, "pools": [_json(g) for g in self.groups]}


def kv_plan(m: Module) -> KVPlan:
    """The caches of ``m``, from the types in its program; ``IRError`` where one pool has two page sizes."""
    from .interp import cache_types  # torch comes with it, and a Pool needs none

    found: dict[tuple[str, int | None], dict[str, Type]] = {}
    stack = next((p.name for p in m.main.data if str(p.type.elem) == "caches"), "kv")
    for key, t in cache_types(m).items():
        assert isinstance(t.elem, Cached)
        pool = t.elem.pool, t.elem.window if isinstance(t.elem, Paged) else CARRIED
        found.setdefault(pool, {})[key if isinstance(key, str) else f"{stack}[{key}]"] = t
    order = sorted(found, key=lambda pool: (pool[0] == STATES, pool[1] is not None, pool[1] or 0))
    return KVPlan(tuple(CacheGroup(*pool, _page(found[pool]), found[pool]) for pool in order))


def is_linear(m: Module) -> bool:
    """Whether a sequence has one page, a slot, in every cache of keys: ``kv-plan(layout="linear")``.

    A window is kept whole then, and there are as many slots as sequences.
    """
    from .interp import cache_types

    most = max(
        (m.dims[s][1] for p in m.main.data if p.type.elem == SEQS for s in symbols(p.type.dims[1])), default=1
    )
    paged = [t for t in cache_types(m).values() if isinstance(t.elem, Paged)]
    return all(_one_page(t, m, most) for t in paged)


def _one_page(t: Type, m: Module, sequences: int) -> bool:
    assert isinstance(t.elem, Paged)
    pages = [m.dims[s][1] for s in symbols(t.dims[0])] or [t.dims[0]]
    return t.elem.window is None and pages[0] == sequences


def page_of(t: Type) -> int:
    """Tokens a page of a cache holds; of a state, tokens between snapshots."""
    assert isinstance(t.elem, Cached)
    return t.elem.page if isinstance(t.elem, Paged) else t.elem.every


def _page(caches: dict[str, Type]) -> int:
    pages = {page_of(t): name for name, t in caches.items()}
    if len(pages) > 1:
        (a, one), (b, other) = list(pages.items())[:2]
        raise IRError(f"caches {one} and {other} share a page table, but have pages of {a} and {b} tokens")
    return next(iter(pages))


def _page_bytes(t: Type) -> int:
    size = t.elem.nbytes((1, *t.dims[1:]))
    if not isinstance(size, int):
        raise IRError(f"cache {t}: all dims but the first must be numbers")
    return size


def _token(t: Type) -> str:
    """Keys and values of one token, or the state of one sequence: ``2 f32[1, 256]``."""
    assert isinstance(t.elem, Cached)
    one = Type(t.elem.elem, t.dims[1:], t.axes[1:])
    if isinstance(t.elem, State) or t.elem.values == 0:
        return str(one)
    values = one.dims[-1] if t.elem.values is None else t.elem.values
    return (
        f"2 {one}" if values == one.dims[-1] else f"{one} {one.with_dims((*one.dims[:-1], values), one.axes)}"
    )


def _json(g: CacheGroup) -> dict[str, Any]:
    caches = {name: str(t) for name, t in g.caches.items()}
    return {"pool": g.name, "window": g.window, "page": g.page, "page_bytes": g.page_bytes, "caches": caches}


_UNITS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)},
}


def read_bytes(text: str | int) -> int:
    """A size as people write it; ``IRError`` where it is none.

    >>> read_bytes("2GiB"), read_bytes("1.5 kB"), read_bytes(77)
    (2147483648, 1500, 77)
    """
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS:
        raise IRError(f"{text!r} is not a size in bytes", hint="a number and a unit: 2GiB, 500MB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def show_bytes(n: float) -> str:
    """A size for people.

    >>> show_bytes(96), show_bytes(1536), show_bytes(5 * 1024**3)
    ('96 B', '1.5 KiB', '5.0 GiB')
    """
    return scaled(n, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def scaled(n: float, by: int, units: Sequence[str]) -> str:
    """``n`` in the first of ``units``, each ``by`` times the one before, in which it is less than ``by``."""
    unit = 0
    while n >= by and unit < len(units) - 1:
        n, unit = n / by, unit + 1
    return f"{n:.1f} {units[unit]}" if unit else f"{n:.0f} {units[0]}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text: the first column to the left, the others to the right.

    >>> print(columns([["pool", "page"], ["full", "16"]]))
    pool  page
    full    16
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)
