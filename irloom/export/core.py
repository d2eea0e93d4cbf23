"""What the formats share: a function as vertices that name what they read, and the table of formats.

A loop is two vertices, ``for`` and ``end``, what enters it and what leaves it: so every graph is acyclic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from irloom.ir.errors import IRError
from irloom.ir.graph import Call, Func, Loop, Module, Node, Stmt, Value, take_name
from irloom.ir.show import show_arg, show_attr
from irloom.ir.weight_expr import show_weight
from irloom.passes.layers import split_loc

FORMATS = {
    "json": "irloom.export.json_graph",
    "dot": "irloom.export.dot",
    "onnx": "irloom.export.onnx_graph",
    "model-explorer": "irloom.export.explorer",
}
"""A module per format, whose ``write(module, functions)`` gives text or, where it is binary, bytes."""


def export(m: Module, to: str, functions: Sequence[str] | None = None) -> str | bytes:
    """``m`` in the format called ``to``; ``functions`` are those to show, by default all."""
    if to not in FORMATS:
        raise IRError(f"no format {to!r}", hint=f"there are {', '.join(FORMATS)}")
    write: Callable[[Module, list[Func]], str | bytes] = import_module(FORMATS[to]).write
    return write(m, [m.funcs[name] for name in (m.funcs if functions is None else functions)])


@dataclass(frozen=True)
class Edge:
    """A read: output ``output`` of the vertex ``source`` is operand ``operand``."""

    source: str
    output: int
    operand: int
    value: Value


@dataclass
class Vertex:
    """A parameter, a statement, one end of a loop, or the return of a function.

    ``id`` is the name of the first value it makes, told apart from its equals by ``#2``. ``kind`` is
    ``input``, ``weight``, ``node``, ``call``, ``for``, ``end`` or ``return``, and ``op`` what it applies.
    ``path`` is the module path of the source model, ``place`` its file and line, ``loops`` the ids of the
    loops that it is in.
    """

    id: str
    kind: str
    op: str
    reads: list[Edge] = field(default_factory=list[Edge])
    makes: list[Value] = field(default_factory=list[Value])
    attrs: dict[str, str] = field(default_factory=dict[str, str])
    path: tuple[str, ...] = ()
    place: str = ""
    made_by: str = ""
    loops: tuple[str, ...] = ()


def vertices(f: Func) -> list[Vertex]:
    """The vertices of a function, each behind what it reads."""
    return list(_Vertices(f))


class _Vertices:
    def __init__(self, f: Func) -> None:
        self.func, self.taken = f, set[str]()
        self.source: dict[Value, tuple[str, int]] = {}

    def __iter__(self) -> Iterator[Vertex]:
        for p in self.func.params:
            attrs = {"weight": show_weight(p.weight)} if p.weight else {}
            yield self._made("weight" if p.weight else "input", p.name, [], [p], attrs=attrs)
        yield from self._statements(self.func.body, ())
        yield self._made("return", "return", self.func.returns, [])

    def _statements(self, body: list[Stmt], loops: tuple[str, ...]) -> Iterator[Vertex]:
        for s in body:
            match s:
                case Node():
                    yield self._made(
                        "node",
                        s.op.name,
                        s.values,
                        s.results,
                        attrs=_attrs(s),
                        loc=s.loc,
                        by=s.made_by,
                        loops=loops,
                    )
                case Call():
                    yield self._made(
                        "call", s.callee, s.values, s.results, attrs=_index(s), loc=s.loc, loops=loops
                    )
                case Loop():
                    attrs = {"range": f"{s.start}, {s.stop}, {s.step}", "variable": s.var}
                    start = self._made("for", "for", s.inits, s.params, attrs=attrs, loops=loops)
                    yield start
                    yield from self._statements(s.body, (*loops, start.id))
                    yield self._made("end", "end", s.yields, s.results, attrs={"loop": start.id}, loops=loops)

    def _made(
        self,
        kind: str,
        op: str,
        reads: list[Value],
        makes: list[Value],
        attrs: dict[str, str] | None = None,
        loc: str = "",
        by: str = "",
        loops: tuple[str, ...] = (),
    ) -> Vertex:
        id = take_name(makes[0].name if makes else op, self.taken, "#", 2)
        path, place = split_loc(loc)
        edges = [Edge(*self.source[v], i, v) for i, v in enumerate(reads)]
        self.source.update((v, (id, i)) for i, v in enumerate(makes))
        parts = tuple(path.split(".")) if path else ()
        return Vertex(id, kind, op, edges, list(makes), attrs or {}, parts, place, by, loops)


def _attrs(n: Node) -> dict[str, str]:
    """Attributes that are not their defaults, and operands that are no values."""
    literals = {
        name: show_arg(a)
        for name, a in zip(n.op.operands, n.args, strict=False)
        if not isinstance(a, Value) and a is not None
    }
    return {**literals, **{k: show_attr(v) for k, v in n.attrs.items() if v != n.op.attrs[k]}}


def _index(c: Call) -> dict[str, str]:
    """The layer that a call is of, and the caches it renews and reads."""
    slots = {"renews": ", ".join(map(str, c.slots)), "reads": ", ".join(map(str, c.reads))}
    return {**({"layer": str(c.index)} if c.index else {}), **{k: v for k, v in slots.items() if v}}
