"""What each node costs, for the steps that a page shows: FLOPs, bytes, and seconds on a device."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from irloom.ir.cost import node_cost, predicted_seconds
from irloom.ir.device import Device
from irloom.ir.errors import IRError
from irloom.ir.graph import Node, Value
from irloom.ir.types import Type

from .document import Workload


def workloads(context: int, seqs: int) -> list[Workload]:
    """A decode of ``seqs`` sequences and the prefill of a prompt, both with ``context`` tokens in the end."""
    return [
        {"name": "decode", "tokens": seqs, "seqs": seqs, "context": context},
        {"name": "prefill", "tokens": context, "seqs": 1, "context": context},
    ]


class Costs:
    """Prices nodes; those with the same op, operand types and attributes only once."""

    def __init__(self, steps: Sequence[Workload], device: Device | None) -> None:
        self.steps, self.device = steps, device
        self._known: dict[Hashable, list[float | None] | None] = {}

    def of(self, n: Node) -> list[float | None] | None:
        """A row of ``costs``; None where a dim has no value that such a step would give it."""
        results = tuple(r.type for r in n.results)
        key = (n.op, tuple(_operand(a) for a in n.args), tuple(n.attrs.items()), results)
        if key not in self._known:
            self._known[key] = self._priced(n)
        return self._known[key]

    def _priced(self, n: Node) -> list[float | None] | None:
        row: list[float | None] = []
        for step in self.steps:
            size = step["tokens"], step["seqs"], step["context"]
            try:
                cost = node_cost(n, *size)
                seconds = predicted_seconds(n, self.device, *size) if self.device else None
            except IRError:
                return None
            row += [cost.flops, cost.bytes]
            row += [float(f"{seconds.total:.4g}"), int(seconds.bound == "compute")] if seconds else [None, 0]
        return row


def _operand(a: Any) -> tuple[type, Type | Any]:
    return (Type, a.type) if isinstance(a, Value) else (type(a), a)
