"""The figures of a program that a page's head shows: weights, caches, what a step costs and takes."""

from __future__ import annotations

from irloom.ir.cost import count_weights, step_nodes
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.plan import kv_plan, scaled, show_bytes

from .costs import Costs

Figures = list[tuple[str, str]]


def figures(m: Module, costs: Costs) -> Figures:
    """Label and value; what cannot be counted, such as caches before they are planned, is left out."""
    try:
        weights, caches = count_weights(m), kv_plan(m)
    except IRError as error:
        return [("plan", f"not known: {error.message}")]
    rows = [
        ("parameters", _short(weights.parameters).replace("G", "B")),
        ("read per token", _short(weights.active).replace("G", "B")),
        ("weights", show_bytes(weights.bytes)),
    ]
    if caches.groups:
        rows.append(("cache per token", show_bytes(caches.token_bytes)))
    if caches.state_bytes:
        rows.append(("state per sequence", show_bytes(caches.state_bytes)))
    return rows + _steps(m, costs)


def _steps(m: Module, costs: Costs) -> Figures:
    """What the steps cost, and how long they take on the device if there is one."""
    total = [0.0] * (4 * len(costs.steps))
    for node, times in step_nodes(m):
        row = costs.of(node)
        if row is None:
            return []
        total = [a + (b or 0) * times for a, b in zip(total, row, strict=True)]
    rows: Figures = []
    for i, step in enumerate(costs.steps):
        flops, moved, seconds, _ = total[4 * i : 4 * i + 4]
        rows.append((step["name"], f"{_short(flops)}FLOP, {show_bytes(moved)}"))
        if costs.device is not None:
            rows.append((f"{step['name']} on {costs.device.name}", _seconds(seconds)))
    return rows


def _short(n: float) -> str:
    """A count for people.

    >>> _short(268_098_176), _short(1.5e12), _short(12)
    ('268.1 M', '1.5 T', '12 ')
    """
    return scaled(n, 1000, ("", "k", "M", "G", "T"))


def _seconds(s: float) -> str:
    unit, scale = ("µs", 1e6) if s < 1e-3 else ("ms", 1e3) if s < 1 else ("s", 1.0)
    return f"{s * scale:.3g} {unit}"
