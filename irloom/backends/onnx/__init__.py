"""The ONNX target: a program as a model of standard operators, run by ONNX Runtime."""

from . import attention, elementwise, experts, partial, recurrent, rows, shape, sparse
from .export import Exported, export, text
from .lower import TABLE, Lowered, Style, Written, lower

__all__ = ["TABLE", "Exported", "Lowered", "Style", "Written", "export", "lower", "text"]
_ = (attention, elementwise, experts, partial, recurrent, rows, shape, sparse)
