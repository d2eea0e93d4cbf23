"""A program as an ONNX model on disk: ``model.onnx``, and its weights beside it.

The model has the names that ``slots.py`` lists for what a step gives, and ``logits``. Symbols of its dims:
``T`` rows, ``S`` sequences, ``B`` slots, ``N`` tokens a slot, ``L`` the length of a cache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.backends.core import Report, quiet
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module
from irloom.ir.types import Type

from .clean import cleaned
from .lower import STYLE, Lowered, Style, lower
from .model import model, onnx_package, place_weights
from .store import write

MODEL, WEIGHTS = "model.onnx", "weights.safetensors"


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    ``inputs`` and ``outputs`` are the model's, ``caches`` the inputs that hold each cache of the program, by
    its parameter; what renews one leaves as that name and ``.out``. ``operators`` counts the model's nodes,
    ``decomposed`` says which ops are not one operator of ONNX's, why, and how often.
    """

    path: Path
    inputs: dict[str, Type]
    outputs: dict[str, Type]
    caches: dict[str, tuple[str, ...]]
    operators: Counter[str]
    decomposed: Counter[str]


def export(
    m: Module, checkpoint: Checkpoint, folder: Path, report: Report = quiet, style: Style = STYLE
) -> Exported:
    """Write ``m`` to ``folder`` and check it; ``IRError`` names the op that ONNX cannot express."""
    lowered = lower(m, style)
    made = protobuf(lowered, m.model)
    used = {x.name for x in made.graph.input}
    weights = [w for w in lowered.graph.weights.values() if w.name in used]
    places = write(weights, checkpoint, m.consts, folder / WEIGHTS, report)
    place_weights(made, lowered.graph, places, WEIGHTS)
    report("check", 0, 1)
    path = folder / MODEL
    path.write_bytes(made.SerializeToString())
    onnx_package().checker.check_model(str(path))
    report("check", 1, 1)
    inputs = {name: t for name, t in lowered.graph.inputs.items() if name in used}
    operators = Counter(n.op_type for n in made.graph.node)
    return Exported(path, inputs, lowered.graph.outputs, lowered.caches, operators, lowered.decomposed)


def protobuf(lowered: Lowered, name: str = "") -> Any:
    """The model without its weights, cleaned up, with the types of all its values."""
    return cleaned(model(lowered.graph, name or "main"))


def text(m: Module, style: Style = STYLE) -> str:
    """The model as text, in ONNX's own notation."""
    return onnx_package().printer.to_text(protobuf(lower(m, style), m.model))
