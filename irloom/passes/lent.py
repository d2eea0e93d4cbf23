"""Layers that attend to the keys and values of an earlier layer: they are lent its cache, and keep none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from irloom.ir.elem import Paged
from irloom.ir.graph import Call, Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.ops import attention
from irloom.ir.types import Type

from .dedupe import drop_inputs


@dataclass
class Kept:
    """One cache of a function: its type, and the ops that are to use it.

    ``lent`` are the parameters for keys and values where callers give those of another function's cache.
    """

    type: Type
    nodes: list[Node]
    lent: tuple[Value, ...] = ()


@dataclass
class Calls:
    """The calls of ``main``: which of them makes a value, and in which loop it stands."""

    maker: dict[Value, Call] = field(default_factory=dict[Value, Call])
    loop: dict[Call, Loop | None] = field(default_factory=dict[Call, "Loop | None"])

    @staticmethod
    def of(main: Func) -> Calls:
        """All of them, in the order in which they stand."""
        out = Calls()
        for s in main.body:
            for c in s.body if isinstance(s, Loop) else [s]:
                if isinstance(c, Call):
                    out.loop[c] = s if isinstance(s, Loop) else None
                    out.maker.update(dict.fromkeys(c.results, c))
        return out

    def lender(
        self, m: Module, c: Call, kept: Kept, caches: Mapping[str, Sequence[Kept]]
    ) -> tuple[Call, int] | None:
        """The call whose keys and values ``c`` is given for ``kept``, and which of its caches holds them."""
        data = m.funcs[c.callee].data
        given = [c.args[data.index(p)] for p in kept.lent if isinstance(p, Param)]
        makers = {self.maker.get(a) for a in given}
        maker = makers.pop()
        if maker is None or makers or self.loop[maker] not in (None, self.loop[c]):
            return None
        made = [m.funcs[maker.callee].returns[maker.results.index(a)] for a in given]
        for i, other in enumerate(own(caches[maker.callee])):
            if (
                other.nodes[0].op is attention
                and other.nodes[0].values[1:3] == made
                and other.type == kept.type
            ):
                return maker, i
        return None


def own(caches: Sequence[Kept]) -> list[Kept]:
    """Those that a function keeps itself."""
    return [kept for kept in caches if not kept.lent]


def lend(m: Module, caches: Mapping[str, Sequence[Kept]]) -> None:
    """Mark the caches that no function needs to keep: every call of it is given what another cache holds."""
    calls = Calls.of(m.main)
    for f in m.funcs.values():
        for kept in caches[f.name]:
            k, v = kept.nodes[0].values[1:3] if isinstance(kept.type.elem, Paged) else (None, None)
            if kept.nodes[0].op is not attention or f is m.main or k not in f.data or v not in f.data:
                continue
            assert k is not None and v is not None
            kept.lent = (k, v)
            every = [c for c in calls.loop if c.callee == f.name]
            if not every or any(calls.lender(m, c, kept, caches) is None for c in every):
                kept.lent = ()


def drop_unused(m: Module) -> None:
    """Take out what functions are given, and then what they return, that nothing reads any more."""
    calls = Calls.of(m.main)
    for f in m.funcs.values():
        if f is not m.main:
            drop_inputs(m, f)
    wanted = {v for s in m.main.body for v in _reads(s)} | set(m.main.returns)
    for f in m.funcs.values():
        every = [c for c in calls.loop if c.callee == f.name]
        plain = len(f.returns) - len(every[0].slots) if every else 0
        kept = [
            i for i, _ in enumerate(f.returns) if i >= plain or any(c.results[i] in wanted for c in every)
        ]
        f.returns = [f.returns[i] for i in kept]
        for c in every:
            c.results = [c.results[i] for i in kept]


def _reads(s: Stmt) -> list[Value]:
    inner = [v for c in s.body for v in c.values] if isinstance(s, Loop) else []
    return [*s.values, *inner, *(s.yields if isinstance(s, Loop) else [])]
