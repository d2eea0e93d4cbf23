"""A program for Model Explorer: a graph collection as JSON, a graph per function.

``irloom dump MODEL --format model-explorer -o model.json``, then ``model-explorer model.json``. Or, with no
file between: ``model-explorer program.irloom --extensions=irloom.export.explorer``.
"""

from __future__ import annotations

import json
from typing import Any

from irloom.ir.graph import Func, Module

from ..core import Vertex, vertices


def write(m: Module, functions: list[Func]) -> str:
    """The collection, with what has its default left out."""
    collection = {"label": m.model or "irloom", "graphs": graphs(m, functions)}
    return json.dumps(collection, indent=1, ensure_ascii=False) + "\n"


def graphs(m: Module, functions: list[Func]) -> list[dict[str, Any]]:
    """A graph per function, ``main`` first; a call leads to the graph of its function."""
    shown = {f.name for f in functions}
    order = sorted(functions, key=lambda f: f.name != "main")
    return [{"id": f.name, "nodes": [_node(v, shown) for v in vertices(f)]} for f in order]


def _node(v: Vertex, shown: set[str]) -> dict[str, Any]:
    facts = {**v.attrs, "source": v.place, "made by": v.made_by, "module": ".".join(v.path)}
    node: dict[str, Any] = {
        "id": v.id,
        "label": v.makes[0].name if v.kind in ("input", "weight") else v.op,
        "namespace": "/".join((*(f"for {x}" for x in v.loops), *v.path)),
        "attrs": [{"key": k, "value": x} for k, x in facts.items() if x],
        "incomingEdges": [
            {
                "sourceNodeId": e.source,
                "sourceNodeOutputId": str(e.output),
                "targetNodeInputId": str(e.operand),
            }
            for e in v.reads
        ],
        "outputsMetadata": [
            {
                "id": str(i),
                "attrs": [
                    {"key": "__tensor_tag", "value": x.name},
                    {"key": "tensor_shape", "value": str(x.type)},
                    *([{"key": "buffer", "value": x.buffer}] if x.buffer else []),
                ],
            }
            for i, x in enumerate(v.makes)
        ],
    }
    if v.kind == "call" and v.op in shown:
        node["subgraphIds"] = [v.op]
    return node
