"""What a program says of a model before anything is built: each op as layers, and what stays outside."""

from __future__ import annotations

from collections import Counter, defaultdict

from irloom.backends.core import Expressed, How, Networks

from .program import PLAIN, Lowered, Program


def networks(p: Program) -> Networks:
    """Each op and how it is expressed, those outside last; an op may be expressed in several ways.

    What several nodes share, such as a mask, counts among the layers of all of them.
    """
    nodes: dict[tuple[str, How, str | None, str], list[Lowered]] = defaultdict(list)
    for n in p.nodes:
        nodes[n.node.op.name, n.how, n.reason, n.form].append(n)
    ops = [
        Expressed(op, how, len(ns), _layers(ns), reason, form)
        for (op, how, reason, form), ns in nodes.items()
    ]
    return Networks(len(p.segments), tuple(sorted(ops, key=lambda e: ORDER.index(e.how))))


ORDER: tuple[How, ...] = ("native", "composed", "outside")


def _layers(nodes: list[Lowered]) -> tuple[str, ...]:
    """The kinds of layers that nodes are made of; those that only move entries where there are no others."""
    kinds = sorted({k for n in nodes for k in n.layers})
    return tuple(k for k in kinds if k not in PLAIN) or tuple(kinds[:1])


def fallbacks(p: Program) -> dict[str, int]:
    """Ops that run their body between networks, and how many nodes do."""
    return dict(Counter(o.node.op.name for o in p.outside))


def declined(p: Program) -> dict[str, str]:
    """Why they do, of each op the first."""
    return {o.node.op.name: f"`{o.makes[0]}`: {o.reason}" for o in reversed(p.outside)}
