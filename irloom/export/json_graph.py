"""A program as JSON: functions, vertices, edges, types and where each comes from.

```text
{"format": "irloom-graph", "version": 1, "model": str, "passes": [str],
 "dims": {name: [low, high]}, "quants": {name: str},
 "functions": [{"name": str, "vertices": [vertex], "edges": [edge]}]}

vertex = {"id": str, "kind": "input" | "weight" | "node" | "call" | "for" | "end" | "return",
          "op": str,             # of a call the function that it calls, else the op
          "outputs": [{"name": str, "type": str, "elem": str, "dims": [int | str], "buffer": str | null}],
          "attrs": {name: str},  # as in the IR's text, defaults left out
          "path": [str],         # the module of the source model, from the outside in
          "place": str,          # file:line of the source model
          "made_by": str,        # the pass that put it there; empty: the frontend
          "loops": [str]}        # the ids of the `for` vertices that it is in
edge   = {"source": str, "output": int, "target": str, "operand": int, "value": str}
```

An id is unique in its function. Every edge leads forward: a loop is a vertex ``for``, which makes what is
carried in, and a vertex ``end``, which makes what is carried out.
"""

from __future__ import annotations

import json
from typing import Any

from irloom.ir.graph import Func, Module, Value

from .core import Vertex, vertices

FORMAT, VERSION = "irloom-graph", 1


def write(m: Module, functions: list[Func]) -> str:
    """See the module's docstring."""
    return json.dumps(graph(m, functions), indent=1, ensure_ascii=False) + "\n"


def graph(m: Module, functions: list[Func]) -> dict[str, Any]:
    """What is written, before it is text."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": m.model,
        "passes": m.passes,
        "dims": {name: list(ends) for name, ends in m.dims.items()},
        "quants": {name: q.declaration() for name, q in m.quants.items()},
        "functions": [_function(f) for f in functions],
    }


def _function(f: Func) -> dict[str, Any]:
    found = vertices(f)
    edges = [
        {"source": e.source, "output": e.output, "target": v.id, "operand": e.operand, "value": e.value.name}
        for v in found
        for e in v.reads
    ]
    return {"name": f.name, "vertices": [_vertex(v) for v in found], "edges": edges}


def _vertex(v: Vertex) -> dict[str, Any]:
    facts = {"id": v.id, "kind": v.kind, "op": v.op, "outputs": [_value(x) for x in v.makes]}
    where = {"path": list(v.path), "place": v.place, "made_by": v.made_by, "loops": list(v.loops)}
    return {**facts, "attrs": v.attrs, **where}


def _value(v: Value) -> dict[str, Any]:
    dims = [d if isinstance(d, int) else str(d) for d in v.type.dims]
    return {"name": v.name, "type": str(v.type), "elem": str(v.type.elem), "dims": dims, "buffer": v.buffer}
