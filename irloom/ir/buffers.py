"""Memory of a function's values: which share storage, and from when to when it is in use."""

from __future__ import annotations

from collections.abc import Iterator

from .graph import Call, Func, Loop, Module, Node, Stmt, Value


def storage(f: Func) -> dict[Value, Value]:
    """For each value the one whose memory it is in: itself, but for views.

    Values are stored in row-major order, so a ``reshape`` moves nothing, and ``split`` and ``slice`` of any dim but
    the first are columns of the same rows. Such a value is a view of its operand when both name one buffer or none,
    and a copy when it names another.
    """
    root: dict[Value, Value] = {p: p for p in f.params}
    for s in f.body:
        root.update((r, r) for r in s.results)
        if isinstance(s, Node) and _is_view(s):
            (x,) = s.values
            root.update((r, root[x]) for r in s.results if r.buffer == x.buffer)
    return root


def _is_view(n: Node) -> bool:
    """Whether the results are entries of the operand where they are."""
    if n.op.name == "reshape":
        return True
    (rank,) = {v.type.rank for v in n.values} if n.op.name in ("split", "slice") else (0,)
    return rank > 1 and n.attrs["dim"] not in (0, -rank) and n.attrs.get("step", 1) == 1


def lifetimes(f: Func) -> dict[Value, tuple[int, int]]:
    """For each storage the statements that write it first and read it last, views included.

    What is returned is in use until the end; a result that nobody reads, while it is written.
    """
    root = storage(f)
    span = {r: (at, at) for at, s in enumerate(f.body) for r in s.results if root[r] is r}
    span.update(dict.fromkeys(f.params, (-1, -1)))
    for at, s in enumerate(f.body):
        for v in (*s.values, *s.results):
            span[root[v]] = (span[root[v]][0], at)
    span.update({root[r]: (span[root[r]][0], len(f.body)) for r in f.returns})
    return span


def called_buffers(m: Module, s: Stmt) -> set[str]:
    """The buffers that the functions called by a statement write."""
    return {b for name in _callees(s) for x in m.funcs[name].body for b in (*_own(x), *called_buffers(m, x))}


def _callees(s: Stmt) -> Iterator[str]:
    match s:
        case Call():
            yield s.callee
        case Loop():
            yield from dict.fromkeys(name for inner in s.body for name in _callees(inner))
        case Node():
            pass


def _own(s: Stmt) -> set[str]:
    return {r.buffer for r in s.results if r.buffer}
