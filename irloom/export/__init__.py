"""A program as a graph for other tools to show: Graphviz, JSON, Netron by ONNX, Model Explorer."""

from .core import FORMATS, export

__all__ = ["FORMATS", "export"]
