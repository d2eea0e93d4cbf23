"""The calling convention: where a function finds its tensors, and where it leaves its results.

Every function that takes an argument of a type at a place takes it from the same buffer, and leaves a result
of that type there, so a value that passes through the layers stays where it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from irloom.backends.cpu.place import Place
from irloom.backends.cpu.program import INDENT
from irloom.ir.elem import Cached, Elem
from irloom.ir.errors import IrloomError
from irloom.ir.graph import Call, Func, Loop, Module, Node, Value

if TYPE_CHECKING:
    from irloom.backends.cpu.lower import Lowering


def enter(f: Lowering) -> None:
    """Place the parameters of a function, and results that can be made where callers look for them."""
    for k, p in enumerate(p for p in f.func.data if isinstance(p.type.elem, Elem)):
        if f.func.name == "main" or f.shared.is_positions(f.func, p):
            array = "tokens" if f.func.name == "main" else "positions"
            f.places[p] = Place(array, p.type.plain, p.type.dims, 1)
        else:
            f.places[p] = f.own(argument(k, p), p)
    if f.func.name == "main":
        return
    held = {f.places[p].buffer: p for p in f.func.data if p in f.places}
    for r, to in zip(f.func.returns, results(f.shared.m, f.func), strict=True):
        made = f.producers.get(r)
        if to is None or not isinstance(made, Node) or f.func.returns.count(r) > 1 or f.storage[r] is not r:
            continue
        if to.buffer not in held or f.last_read(held[to.buffer]) < _written(f, made):
            f.own(to.buffer, r)
            f.places[r] = to


def _written(f: Lowering, made: Node) -> int:
    """The first statement whose kernel may write what ``made`` makes: it may be done with what it reads."""
    inputs = [p for v in made.values if isinstance(p := f.producers.get(v), Node) and f.readers[v] == [made]]
    return min([f.order[id(made)], *(_written(f, p) for p in inputs if _goes_on(p))])


def _goes_on(n: Node) -> bool:
    """Whether the kernel of an op may also do the op that reads its result."""
    return n.op.name in ("rms_norm", "embedding") or "~" in n.op.signature.text


def leave(f: Lowering) -> None:
    """Bring results to where callers look for them; ``main`` returns its tensor."""
    if f.func.name == "main":
        f.lines += [f"{INDENT}return {f.name_of(r)}" for r in f.func.returns if isinstance(r.type.elem, Elem)]
        return
    rows = [
        (r, to) for r, to in zip(f.func.returns, results(f.shared.m, f.func), strict=True) if to is not None
    ]
    moved = [(r, to) for r, to in rows if f.places[r] != to]
    targets = {to.buffer for _, to in moved}
    for r, _ in moved:
        if f.places[r].buffer in targets:
            _keep(f, r, INDENT)
    for r, to in moved:
        f.own(to.buffer, r)
        f.lines.append(f"{INDENT}copy({f.name_of(r)}, {f.name_place(to)})")


def call(f: Lowering, c: Call, indent: str) -> None:
    """Arguments to their places, what is overwritten but still needed aside, then the call itself."""
    _save(f, [c], c, indent)
    _bring(f, _moves(f, c), indent)
    index = [str(c.index)] if f.shared.layers(c.callee) else []
    caches = [f.name_of(a) for a in c.args if isinstance(a.type.elem, Cached)]
    f.lines.append(
        f"{indent}{c.callee}({', '.join([*index, *caches, *map(str, c.slots), *map(str, c.reads)])})"
    )
    for r, place in zip(c.results, results(f.shared.m, f.shared.m.funcs[c.callee]), strict=True):
        if place is not None:
            f.places[r] = place
            f.holds[place.buffer] = r


def loop(f: Lowering, s: Loop, indent: str) -> None:
    """A loop: what every pass reads alike is brought there once, what is carried on stays in its place."""
    calls = [c for c in s.body if isinstance(c, Call)]
    if len(calls) < len(s.body):
        raise IrloomError(
            f"cpu: the loop over {s.var} does more than call functions", hint="outline makes such loops"
        )
    _save(f, calls, s, indent)
    written = _written_by(f, calls)
    carried = [_made_place(f, calls, y) for y in s.yields]
    entry = list(zip(s.inits, carried, strict=True))
    moves = [move for c in calls for move in _moves(f, c)]
    for a, to in dict.fromkeys(moves):
        alike = all(b is a for b, there in moves if there.buffer == to.buffer)
        if a in f.places and alike and to.buffer not in written:
            entry.append((a, to))
    _bring(f, entry, indent)
    f.places.update(zip(s.params, carried, strict=True))
    kept = {to.buffer for _, to in entry} - written
    f.holds = {b: v for b, v in f.holds.items() if b in kept}
    f.holds.update((to.buffer, p) for p, to in zip(s.params, carried, strict=True))
    f.lines.append(f"{indent}for {s.var} in range({s.start}, {s.stop}, {s.step}):")
    for c in calls:
        call(f, c, indent + INDENT)
    f.places.update((r, f.places[y]) for r, y in zip(s.results, s.yields, strict=True))


def _moves(f: Lowering, c: Call) -> list[tuple[Value, Place]]:
    """Which arguments of a call go where."""
    callee = f.shared.m.funcs[c.callee]
    data = [p for p in callee.data if isinstance(p.type.elem, Elem)]
    given = [a for a in c.args if isinstance(a.type.elem, Elem)]
    rows = enumerate(zip(data, given, strict=True))
    return [(a, Place.of(argument(k, p), p)) for k, (p, a) in rows if not f.shared.is_positions(callee, p)]


def _bring(f: Lowering, moves: list[tuple[Value, Place]], indent: str) -> None:
    """Bring values to places, all at once: none is overwritten before it has been read."""
    pending = [(a, to) for a, to in moves if f.places[a] != to and f.holds.get(to.buffer) is not a]
    while pending:
        sources = [f.places[a].buffer for a, _ in pending]
        free = next((i for i, (_, to) in enumerate(pending) if to.buffer not in sources), None)
        if free is None:
            _keep(f, pending[0][0], indent)
            continue
        a, to = pending.pop(free)
        f.own(to.buffer, a)
        f.lines.append(f"{indent}copy({f.name_of(a)}, {f.name_place(to)})")
        f.holds[to.buffer] = a


def _save(f: Lowering, calls: list[Call], at: Call | Loop, indent: str) -> None:
    """Copy aside what these calls overwrite and a later statement reads."""
    due = f.order.get(id(at))
    if due is None:  # inside a loop, which has saved before
        return
    moved = {to.buffer for c in calls for a, to in _moves(f, c) if f.places.get(a) != to}
    written = moved | _written_by(f, calls)
    for v in [v for v, place in f.places.items() if place.buffer in written]:
        if f.last_read(v) > due:
            _keep(f, v, indent)


def _keep(f: Lowering, v: Value, indent: str) -> None:
    """Copy a value to a buffer of its own and read it there from now on."""
    kept = f.own(f"{f.func.name}_{v.name}_kept", Value(v.name, v.type))
    f.lines.append(f"{indent}copy({f.name_of(v)}, {f.name_place(kept)})")
    f.places[v] = kept


def _written_by(f: Lowering, calls: Iterable[Call]) -> set[str]:
    """The buffers that calls leave results in."""
    m = f.shared.m
    return {p.buffer for c in calls for p in results(m, m.funcs[c.callee]) if p is not None}


def _made_place(f: Lowering, calls: list[Call], y: Value) -> Place:
    for c in calls:
        for r, place in zip(c.results, results(f.shared.m, f.shared.m.funcs[c.callee]), strict=True):
            if r is y and place is not None:
                return place
    raise IrloomError(
        f"cpu: a loop carries {y.name} on, which no call in it makes", hint="outline makes such loops"
    )


def argument(k: int, p: Value) -> str:
    """The buffer of the ``k``-th tensor argument; functions whose arguments have one type share it."""
    dims = [re.sub(r"\W+", "x", str(d)) for d in p.type.dims]
    return f"arg{k}_{p.type.elem}_{'_'.join(dims)}"


def results(m: Module, f: Func) -> list[Place | None]:
    """Where a function leaves its results: where arguments of their types were, else in new buffers."""
    data = [p for p in f.data if isinstance(p.type.elem, Elem)]
    free = [(p, argument(k, p)) for k, p in enumerate(data)]
    out: list[Place | None] = []
    for k, r in enumerate(f.returns):
        if not isinstance(r.type.elem, Elem):
            out.append(None)
            continue
        match = next((x for x in free if x[0].type == r.type), None)
        if match:
            free.remove(match)
        out.append(Place.of(match[1] if match else f"result{k}_{f.name}", r))
    return out
