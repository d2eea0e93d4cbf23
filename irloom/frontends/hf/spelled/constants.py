"""What constants determine: indices that are known lists, joins with nothing, types of other tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from irloom.frontends.hf.spelled.probe import Depends, Probe
from irloom.frontends.hf.spelled.seen import Lengths
from irloom.ir.errors import TraceError

aten = torch.ops.aten


def fold_constants(probe: Probe) -> int:
    """Rewrite a graph in place; how many nodes were folded."""
    done = 0
    for node in list(probe.graph.nodes):
        match str(node.target):
            case "aten.index.Tensor":
                found = _chosen(probe, node)
            case "aten.cat.default":
                found = _joined(node)
            case "aten.type_as.default" | "aten.to.other":
                found = _cast(probe, node)
            case _:
                continue
        if found is not None:
            found.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(found)
            done += 1
    if done:
        probe.survey()
    return done


def _chosen(probe: Probe, node: Node) -> Node | None:
    """Entries of one dim at known places, as slices."""
    args: Any = node.args
    x, places = args[:2]
    given = [(d, p) for d, p in enumerate(places) if p is not None]
    if len(given) != 1 or not isinstance(given[0][1], Node):
        return None
    dim, index = given[0]
    if probe.depends[index] is not Depends.LENGTHS or not isinstance(x.meta["val"].shape[dim], int):
        return None
    if index.meta["val"].ndim != 1 or any(not isinstance(n, int) for n in index.meta["val"].shape):
        return None
    try:
        wanted = [int(i) % x.meta["val"].shape[dim] for i in probe.value(index, Lengths(5, 3))]
    except TraceError:
        return None
    with probe.graph.inserting_before(node):
        parts = [_add(probe.graph, node, aten.slice.Tensor, x, dim, a, b) for a, b in _runs(wanted)]
        return parts[0] if len(parts) == 1 else _add(probe.graph, node, aten.cat.default, parts, dim)


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """Ranges that follow each other in ``places``.

    >>> _runs([3, 4, 0])
    [(3, 5), (0, 1)]
    """
    runs: list[tuple[int, int]] = []
    for at in places:
        if runs and runs[-1][1] == at:
            runs[-1] = (runs[-1][0], at + 1)
        else:
            runs.append((at, at + 1))
    return runs


def _joined(node: Node) -> Node | None:
    """A join without the operands that are empty, as a cache is before its first token."""
    operands: Any = node.args[0]
    rest = [x for x in operands if not _empty(x.meta.get("val"))]
    return rest[0] if len(rest) == 1 < len(operands) else None


def _cast(probe: Probe, node: Node) -> Node:
    """A cast to the type of another tensor, which then need not be known."""
    with probe.graph.inserting_before(node):
        return _add(probe.graph, node, aten.to.dtype, node.args[0], node.meta["val"].dtype)


def _empty(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 1 and x.shape[0] == 0


def _add(graph: Graph, old: Node, op: Any, *args: Any) -> Node:
    node = graph.call_function(op, args)
    node.meta = {k: v for k, v in old.meta.items() if k in ("nn_module_stack", "stack_trace")}
    return node
