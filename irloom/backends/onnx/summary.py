"""What a program says of a model before anything is written: each op, and the operators that compute it."""

from __future__ import annotations

from collections import defaultdict

from irloom.backends.core import Expressed, How, Networks

from .lower import Lowered, Written

VIEWS = {"Reshape", "Transpose", "Cast", "Unsqueeze", "Squeeze", "Gather", "Identity", "Expand", "Shape"}
"""Operators that move entries, or change their element."""


def networks(found: Lowered) -> Networks:
    """One model, and each op in it: as one operator but for views, or of several."""
    nodes: dict[tuple[str, How, tuple[str, ...], str], int] = defaultdict(int)
    for w in found.written:
        kinds = _kinds(w)
        nodes[w.op, "composed" if len(kinds) > 1 else "native", kinds, w.why] += 1
    ops = [Expressed(op, how, n, kinds, None, why) for (op, how, kinds, why), n in nodes.items()]
    return Networks(1, tuple(sorted(ops, key=lambda e: e.how != "native")))


def _kinds(w: Written) -> tuple[str, ...]:
    """The kinds of operators; views where there are no others."""
    kinds = tuple(dict.fromkeys(w.operators))
    return tuple(k for k in kinds if k not in VIEWS) or kinds[:1]
