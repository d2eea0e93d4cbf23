"""Cleaning up: folding and dead code by onnx-graphsurgeon, the types of all values by ONNX's own inference.

Weights are inputs meanwhile, so no tool ever touches their values.
"""

from __future__ import annotations

from typing import Any

from .model import onnx_package


def cleaned(m: Any) -> Any:
    """A model whose constant parts are folded, without what nothing reads, checked, with inferred types."""
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(m)
    graph.fold_constants().cleanup(remove_unused_graph_inputs=True)
    out = gs.export_onnx(graph)
    out.ir_version = m.ir_version
    return _inferred(out)


def _inferred(m: Any) -> Any:
    onnx = onnx_package()
    out = onnx.shape_inference.infer_shapes(m, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(out, full_check=True)
    return out
