"""What became of each op of a program: one operator of ONNX's, several, or simpler ops first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from irloom.backends.core import Expressed, How, Networks

from .graph import OnnxNode
from .lower import Lowered

VIEWS = {"Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Shape", "Concat"}
"""Operators that compute nothing: casts, views, and the dims of views."""


def networks(made: Lowered) -> Networks:
    """See ``backends.core.NetworkBackend``: one model, whatever the program."""
    nodes = Counter((w.op, tuple(dict.fromkeys(computing(w.nodes))), w.why) for w in made.written)
    ops = [Expressed(op, _how(kinds), n, kinds, form=why) for (op, kinds, why), n in nodes.items()]
    return Networks(1, tuple(sorted(ops, key=lambda e: e.how != "native")))


def _how(kinds: tuple[str, ...]) -> How:
    return "native" if len(kinds) <= 1 else "composed"


def computing(nodes: Iterable[OnnxNode]) -> list[str]:
    """The operators among ``nodes`` that do more than pad rows to slots, pack or view them."""
    return [n.op for n in nodes if n.op not in VIEWS and not {"pad", "unpad"} & set(n.inputs)]
