"""A program for Graphviz: a cluster per function, and in it one per module of the source model and per loop.

``irloom dump MODEL --layer 0 --format dot | dot -Tsvg -o layer.svg``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from irloom.ir.graph import Func, Module

from .core import Vertex, vertices

STYLES = {
    "input": "shape=ellipse, style=filled, fillcolor=lightblue",
    "weight": "shape=note, style=filled, fillcolor=lightyellow",
    "call": "shape=box3d",
    "for": "shape=invhouse",
    "end": "shape=house",
    "return": "shape=ellipse, style=filled, fillcolor=lightblue",
}


@dataclass
class _Cluster:
    """Vertices, and the clusters inside of it by name."""

    vertices: list[Vertex] = field(default_factory=list[Vertex])
    inner: dict[str, _Cluster] = field(default_factory=dict[str, "_Cluster"])


def write(m: Module, functions: list[Func]) -> str:
    """The text of one ``digraph``."""
    rows = [f"digraph {_quoted(m.model or 'irloom')} {{"]
    rows += ["  rankdir=TB; compound=true;", '  node [shape=box, fontname="monospace", fontsize=10];']
    rows += ['  edge [fontname="monospace", fontsize=8];', '  graph [fontname="sans-serif", fontsize=11];']
    for f in functions:
        rows += [f"  {row}" for row in _function(f)]
    return "\n".join([*rows, "}"]) + "\n"


def _function(f: Func) -> Iterator[str]:
    found, top = vertices(f), _Cluster()
    for v in found:
        at = top
        for name in (*v.loops, *v.path):
            at = at.inner.setdefault(name, _Cluster())
        at.vertices.append(v)
    yield from _cluster(f.name, f.name, top, f.name)
    for v in found:
        for e in v.reads:
            ends = f"{_quoted(f'{f.name}/{e.source}')} -> {_quoted(f'{f.name}/{v.id}')}"
            yield f"{ends} [label={_quoted(str(e.value.type))}];"


def _cluster(id: str, label: str, c: _Cluster, func: str) -> Iterator[str]:
    yield f"subgraph {_quoted(f'cluster_{id}')} {{"
    yield f"  label={_quoted(label)};"
    for v in c.vertices:
        yield f"  {_quoted(f'{func}/{v.id}')} [label={_quoted(_label(v))}{_style(v)}];"
    for name, inner in c.inner.items():
        for row in _cluster(f"{id}.{name}", name, inner, func):
            yield f"  {row}"
    yield "}"


def _style(v: Vertex) -> str:
    return f", {STYLES[v.kind]}" if v.kind in STYLES else ""


def _label(v: Vertex) -> str:
    """What it makes, by which op, with which attributes."""
    made = ", ".join(x.name for x in v.makes)
    if v.kind in ("input", "weight"):
        return f"{made}\n{v.makes[0].type}"
    given = "\n".join(f"{k}={x}" for k, x in v.attrs.items())
    return "\n".join(row for row in (f"{made} = {v.op}" if made else v.op, given) if row)


def _quoted(text: str) -> str:
    """A string of the DOT language; its own line breaks are ``\\\\n``."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
