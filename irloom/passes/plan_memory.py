"""Values that do not live at the same time share memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import ClassVar

from irloom.ir.buffers import called_buffers, lifetimes, storage
from irloom.ir.dims import Dim, covers, evaluate
from irloom.ir.elem import Elem, Quant
from irloom.ir.graph import Func, Module, Value
from irloom.ir.plan import show_bytes

from .core import Changes, Pass, spend


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Give each intermediate value a buffer, few and small: largest value first, into the tightest free one.

    A buffer's bytes are a dim, such as ``2560*T``; two values share one only where one size covers the other
    for every ``T`` and ``S``. A value never takes the buffer of an operand of its own op, and a ``reshape``
    is a view in its operand's. What a function calls writes buffers too: no value that lives across a call is
    in one of those. A quantized value has its entries first, then its scales. Not planned are
    parameters, weights, caches, what calls make and what functions return: their memory is the caller's.
    """

    after: ClassVar[tuple[str, ...]] = ("*",)

    def run(self, m: Module) -> Changes:
        """One change per function, and the total at the upper end of every dim."""
        changes = Changes()
        if not spend():
            return changes
        top = {name: high for name, (_, high) in m.dims.items()}
        buffers: list[_Buffer] = []
        every = 0
        for f in m.funcs.values():
            values = _unplanned(f)
            every += sum(evaluate(v.type.nbytes, top) for v in values)
            used = _plan(m, f, values, buffers, top)
            if values:
                changes.places.append(f"{f.name}: {len(values)} values in {used} buffers")
        _name(m, buffers)
        if buffers:
            total = sum(evaluate(b.size, top) for b in buffers)
            changes.places.append(f"main: {show_bytes(total)} of {show_bytes(every)}")
        return changes

    def holds(self, m: Module) -> str | None:
        bare = [(f, v) for f in m.funcs.values() for v in _own(f) if v.buffer is None]
        return f"{bare[0][0].name}.{bare[0][1].name} has no buffer" if bare else None


@dataclass(eq=False)
class _Buffer:
    """Memory of ``size`` bytes; ``busy`` in these spans of statements of the function at hand."""

    name: str
    size: Dim
    busy: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def free(self, span: tuple[int, int]) -> bool:
        """Whether nothing else is in it during ``span``."""
        at = bisect_left(self.busy, (span[1] + 1, -1))
        return at == 0 or self.busy[at - 1][1] < span[0]

    def take(self, size: Dim, span: tuple[int, int]) -> None:
        """Put a value in it."""
        self.size = self.size if covers(self.size, size) else size
        insort(self.busy, span)


def _unplanned(f: Func) -> list[Value]:
    """The values of ``f`` that get memory of their own; a former plan is forgotten."""
    for n in f.nodes:
        for v in n.results:
            v.buffer = None
    return _own(f)


def _own(f: Func) -> list[Value]:
    """The values of ``f`` whose memory is neither another value's nor the caller's."""
    made = [r for n in f.nodes for r in n.results]
    root = storage(f)
    given = {root[r] for r in f.returns}
    return [v for v in made if root[v] is v and v not in given and isinstance(v.type.elem, Elem | Quant)]


def _plan(m: Module, f: Func, values: list[Value], buffers: list[_Buffer], top: dict[str, int]) -> int:
    """Place the values of one function; how many buffers it uses. Its callees are planned already."""
    named = {b.name: b for b in buffers}
    for b in buffers:
        b.busy = []
    for at, s in enumerate(f.body):
        for name in sorted(called_buffers(m, s)):
            insort(named[name].busy, (at, at))
    span, size = lifetimes(f), {v: evaluate(v.type.nbytes, top) for v in values}
    place: dict[Value, _Buffer] = {}
    for v in sorted(values, key=lambda v: (-size[v], span[v])):
        b = _tightest(buffers, v.type.nbytes, span[v], top)
        if b is None:
            b = _Buffer(f"b{len(buffers)}", v.type.nbytes)
            buffers.append(b)
        b.take(v.type.nbytes, span[v])
        place[v] = b
    root = storage(f)
    for v, r in root.items():
        if r in place:
            v.buffer = place[r].name
    return len(set(place.values()))


def _tightest(
    buffers: list[_Buffer], size: Dim, span: tuple[int, int], top: dict[str, int]
) -> _Buffer | None:
    """The free buffer that need grow least to hold ``size``, and then wastes least."""
    best: tuple[int, int, _Buffer] | None = None
    want = evaluate(size, top)
    for b in buffers:
        if not b.free(span) or not (covers(b.size, size) or covers(size, b.size)):
            continue
        extra = want - evaluate(b.size, top)
        cost = (max(extra, 0), max(-extra, 0), b)
        if best is None or cost[:2] < best[:2]:
            best = cost
    return best and best[2]


def _name(m: Module, buffers: list[_Buffer]) -> None:
    """Number the buffers in the order in which the text names them, and declare them."""
    values = [r for f in m.funcs.values() for s in f.body for r in s.results]
    used = list(dict.fromkeys(v.buffer for v in values if v.buffer))
    new = {name: f"b{k}" for k, name in enumerate(used)}
    for v in values:
        v.buffer = new[v.buffer] if v.buffer else None
    m.buffers = {new[b.name]: b.size for b in sorted(buffers, key=lambda b: used.index(b.name))}
