"""What became of each op of a program: one operator of ONNX's, several, or simpler ops first."""

from __future__ import annotations

from collections.abc import Iterator

from irloom.backends.core import Expressed, Networks

from .graph import OnnxNode
from .lower import Lowered

VIEWS = {"Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Shape", "Concat"}
"""Operators that compute nothing: casts, views, and the dims of views."""


def networks(made: Lowered) -> Networks:
    """See ``backends.core.NetworkBackend``: one model, whatever the program."""
    return Networks(1, tuple(_ops(made)))


def _ops(made: Lowered) -> Iterator[Expressed]:
    why = dict(said.split(": ", 1) for said in made.decomposed)
    times = {said.split(": ", 1)[0]: count for said, count in made.decomposed.items()}
    for op, each in made.made.items():
        kinds = tuple(dict.fromkeys(kind for nodes in each for kind in computing(nodes)))
        how = "native" if len(kinds) <= 1 else "composed"
        yield Expressed(op, how, len(each), kinds, form=why.get(op, ""))
    for op, reason in why.items():
        if op not in made.made:
            yield Expressed(op, "composed", times[op], form=reason)


def computing(nodes: list[OnnxNode]) -> list[str]:
    """The operators among ``nodes`` that do more than pad rows to slots, pack or view them."""
    return [n.op for n in nodes if n.op not in VIEWS and not {"pad", "unpad"} & set(n.inputs)]
