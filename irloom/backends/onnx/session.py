"""ONNX Runtime: which version is needed, how a model is opened, what the model takes and gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irloom.ir.errors import EngineMismatch

from .caches import CacheInput

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INSTALL = "pip install 'irloom[onnx]'"
BUILD = {"onnx": "1.19", "onnx-graphsurgeon": "0.5.8"}
RUN = {"onnxruntime": "1.25"}
"""The oldest versions that do. ONNX Runtime has TensorScatter on the CPU since this one."""


def lacking(packages: Mapping[str, str]) -> str | None:
    """What is not installed of ``packages``, or too old."""
    return ", ".join(filter(None, (_lacking(*each) for each in packages.items()))) or None


def _lacking(name: str, least: str) -> str | None:
    try:
        here = version(name)
    except PackageNotFoundError:
        return f"{name} {least} or newer"
    return f"{name} {least} or newer, not {here}" if numbers(here) < numbers(least) else None


def numbers(text: str) -> tuple[int, ...]:
    """A version's leading numbers.

    >>> numbers("1.31.0rc2")
    (1, 31, 0)
    """
    return tuple(int(part) for part in re.match(r"[\d.]*", text)[0].rstrip(".").split("."))  # type: ignore[index]


def need(packages: Mapping[str, str]) -> None:
    """``EngineMismatch`` says what to install where something is lacking."""
    if lacks := lacking(packages):
        raise EngineMismatch(f"target onnx needs {lacks}", hint=INSTALL)


def open_session(model: Path, threads: int) -> InferenceSession:
    """A session on the CPU. Weights are mapped, packed for its kernels once, and the mapping is dropped.

    Dims differ at every step, so plans of memory by dims are off: they would never be used again. Weights
    of four and eight bits are multiplied as they are, with activations rounded to eight.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def cache_inputs(session: InferenceSession) -> list[CacheInput]:
    """The caches among the inputs: those whose first dim is ``B`` and that come out again."""
    renewed = {o.name for o in session.get_outputs()}
    return [_cache(i) for i in session.get_inputs() if f"{i.name}.out" in renewed]


def _cache(given: Any) -> CacheInput:
    dims = given.shape[1:]
    for axis, d in enumerate(dims):
        if isinstance(d, str) and d.startswith("L"):
            sizes = tuple(0 if i == axis else int(x) for i, x in enumerate(dims))
            return CacheInput(given.name, given.type, sizes, axis, int(d[1:] or 1))
    return CacheInput(given.name, given.type, tuple(map(int, dims)), None)
