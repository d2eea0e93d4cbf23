"""The figures of a program that a page's head shows: weights, caches, what a step costs and takes."""

from __future__ import annotations

from irloom.ir.device import Device
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.plan import show_bytes

from .document import Workload

Figures = list[tuple[str, str]]


def figures(m: Module, steps: list[Workload], device: Device | None) -> Figures:
    """Label and value; what cannot be counted, such as caches before they are planned, is left out."""
    try:
        plan = m.plan()
    except IRError as error:
        return [("plan", f"not known: {error.message}")]
    weights, caches = plan.weights, plan.kv
    rows = [
        ("parameters", _short(weights.parameters)),
        ("read per token", _short(weights.active)),
        ("weights", show_bytes(weights.bytes)),
    ]
    if caches.groups:
        rows.append(("cache per token", show_bytes(caches.token_bytes)))
    if caches.state_bytes:
        rows.append(("state per sequence", show_bytes(caches.state_bytes)))
    return rows + [row for step in steps for row in _step(m, step, device)]


def _step(m: Module, step: Workload, device: Device | None) -> Figures:
    size = step["tokens"], step["seqs"], step["context"]
    try:
        plan = m.plan()
        cost = plan.step(*size)
        rows = [(step["name"], f"{_short(cost.flops)}FLOP, {show_bytes(cost.bytes)}")]
        if device is not None:
            time = plan.seconds(device, *size)
            rows.append((f"{step['name']} on {device.name}", f"{_seconds(time.total)}, {time.bound} bound"))
    except IRError:
        return []
    return rows


def _short(n: float) -> str:
    """A count for people.

    >>> _short(268_098_176), _short(1.5e12), _short(12)
    ('268.1 M', '1.5 T', '12 ')
    """
    for unit in ("", "k", "M", "G", "T"):
        if n < 1000 or unit == "T":
            break
        n /= 1000
    return f"{n:.0f} {unit}" if unit == "" else f"{n:.1f} {unit}"


def _seconds(s: float) -> str:
    unit, scale = ("µs", 1e6) if s < 1e-3 else ("ms", 1e3) if s < 1 else ("s", 1.0)
    return f"{s * scale:.3g} {unit}"
