"""Memory of a function's values: which share storage, and from when to when it is in use."""

from __future__ import annotations

from collections.abc import Iterator

from .graph import Call, Func, Loop, Module, Node, Stmt, Value


def storage(f: Func) -> dict[Value, Value]:
    """For each value the one whose memory it is in: itself, but for views.

    Values are stored in row-major order, so a ``reshape`` moves nothing, and ``split`` and ``slice`` of any
    dim but the first are columns of the same rows (which a ``reshape`` must then leave apart). Such a value
    is a view of its operand when both name one buffer or none, and a copy when it names another.
    """
    root: dict[Value, Value] = {p: p for p in f.params}
    apart: dict[Value, int] = {}
    for s in f.body:
        root.update((r, r) for r in s.results)
        rows = _rows_apart(s, apart) if isinstance(s, Node) else None
        if rows is not None:
            (x,) = s.values
            views = [r for r in s.results if r.buffer == x.buffer]
            root.update(dict.fromkeys(views, root[x]))
            apart.update(dict.fromkeys(views, rows))
    return root


def _rows_apart(n: Node, apart: dict[Value, int]) -> int | None:
    """How many leading dims of the results have gaps between their rows; None where results are no views."""
    if n.op.name not in ("reshape", "split", "slice"):
        return None
    (x,) = n.values
    rows = apart.get(x, 0)
    if n.op.name == "reshape":
        return rows if n.result.type.dims[:rows] == x.type.dims[:rows] else None
    dim = n.attrs["dim"]
    assert isinstance(dim, int)
    at = dim % x.type.rank
    return max(rows, at) if at and n.attrs.get("step", 1) == 1 else None


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
