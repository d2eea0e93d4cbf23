"""A graph as an ONNX model: the protobuf, with or without where its weights lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irloom import __version__
from irloom.ir.dims import Dim
from irloom.ir.elem import Elem
from irloom.ir.errors import IRError
from irloom.ir.types import Type

from .graph import Constant, Graph, OnnxNode

OPSET, IR_VERSION = 24, 11
"""The first with ``TensorScatter``, and with lengths of keys at ``Attention``; ONNX 1.19 reads it."""

DTYPES = {
    "f64": "DOUBLE", "f32": "FLOAT", "f16": "FLOAT16", "bf16": "BFLOAT16", "f8e4m3": "FLOAT8E4M3FN",
    "f8e5m2": "FLOAT8E5M2", "i64": "INT64", "i32": "INT32", "i16": "INT16", "i8": "INT8", "i4": "INT4",
    "u8": "UINT8", "u4": "UINT4", "bool": "BOOL",
}  # fmt: skip


def onnx_package() -> Any:
    """The package; ``IRError`` where it is not installed."""
    try:
        import onnx
    except ModuleNotFoundError:
        raise IRError("target onnx needs the package onnx", hint="pip install 'irloom[onnx]'") from None
    return onnx


def dtype(elem: Elem) -> int:
    """The number of an element in ONNX."""
    return getattr(onnx_package().TensorProto, DTYPES[elem.name])


def model(g: Graph, name: str) -> Any:
    """The model of a graph. Its weights are inputs: their values come later."""
    onnx = onnx_package()
    given = {**g.inputs, **{w.name: Type(w.elem, w.dims) for w in g.weights.values()}}
    graph = onnx.helper.make_graph(
        [_node(n) for n in g.nodes],
        name,
        [_info(n, t) for n, t in given.items()],
        [_info(n, t) for n, t in g.outputs.items()],
        [_constant(c) for c in g.constants.values()],
        value_info=[_info(n, t) for n, t in g.types.items() if n not in g.outputs],
    )
    domains = [("", OPSET), *((d, 1) for d in sorted({n.domain for n in g.nodes} - {""}))]
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in domains],
        ir_version=IR_VERSION,
        producer_name="irloom",
        producer_version=__version__,
    )


def place_weights(m: Any, g: Graph, places: Mapping[str, tuple[int, int]], location: str) -> None:
    """Turn the inputs that are weights into initializers that lie in a file, at ``(offset, length)``."""
    kept = [x for x in m.graph.input if x.name not in g.weights]
    there = {x.name for x in m.graph.input} - {x.name for x in kept}
    del m.graph.input[:]
    m.graph.input.extend(kept)
    for w in g.weights.values():
        if w.name in there:
            offset, length = places[w.name]
            t = m.graph.initializer.add(name=w.name, data_type=dtype(w.elem), dims=w.dims)
            t.data_location = onnx_package().TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                t.external_data.add(key=key, value=str(value))


def _node(n: OnnxNode) -> Any:
    attrs = {k: _attribute(v) for k, v in n.attrs.items()}
    return onnx_package().helper.make_node(
        n.op, n.inputs, n.outputs, n.name, domain=n.domain or None, **attrs
    )


def _attribute(v: Any) -> Any:
    if isinstance(v, Elem):
        return dtype(v)
    return subgraph(v) if isinstance(v, Graph) else v


def subgraph(g: Graph) -> Any:
    """The body of a loop."""
    return onnx_package().helper.make_graph(
        [_node(n) for n in g.nodes],
        "body",
        [_info(n, t) for n, t in g.inputs.items()],
        [_info(n, t) for n, t in g.outputs.items()],
        [_constant(c) for c in g.constants.values()],
    )


def _info(name: str, t: Type) -> Any:
    dims = [d if isinstance(d, int) else _symbol(d) for d in t.dims]
    return onnx_package().helper.make_tensor_value_info(name, dtype(t.plain), dims)


def _symbol(d: Dim) -> str:
    return str(d).replace(" ", "")


def _constant(c: Constant) -> Any:
    import torch

    onnx = onnx_package()
    values = torch.tensor(c.values, dtype=c.elem.torch)
    raw = values.view(torch.uint8).numpy().tobytes() if c.values else b""
    return onnx.helper.make_tensor(c.name, dtype(c.elem), c.dims, raw, raw=True)
