"""A model that traces: its ops, layers and costs, before and after the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from irloom.ir.cost import Cost, Plan
from irloom.ir.graph import Module
from irloom.ir.show import show
from irloom.passes import Record
from irloom.passes.raised import Raised, count


@dataclass(frozen=True)
class Found:
    """A model that traces: the seconds it took, the program then, after the pipeline, and its record."""

    seconds: float
    traced: Module
    made: Module
    record: Record

    @cached_property
    def raised(self) -> Raised:
        """Its model ops."""
        return count(self.made, self.record)

    @cached_property
    def plan(self) -> Plan:
        """Its weights, caches and costs."""
        return self.made.plan()

    @property
    def layers(self) -> list[str]:
        """A line per distinct layer: ``layer: 21 nodes, layers 0-79``."""
        places = [p for s in self.record.steps if s.name == "outline" for p in s.changes.places]
        return [place.removeprefix("main.") for place in places]

    def to_json(self, context: int) -> dict[str, Any]:
        """For ``--json``; FLOPs and bytes are per token."""
        programs, plan = {"trace": self.traced, "made": self.made}, self.plan
        return {
            "seconds": round(self.seconds, 3),
            "nodes": {k: sum(len(f.nodes) for f in m.funcs.values()) for k, m in programs.items()},
            "lines": {k: len(show(m).splitlines()) for k, m in programs.items()},
            "layers": self.layers,
            "model_ops": self.raised.model_ops,
            "tensor_ops": self.raised.tensor_ops,
            "flops_in_model_ops": round(self.raised.share, 6),
            "near_misses": self.raised.near_misses,
            "weights": plan.weights.to_json(),
            "decode": _per_token(plan.decode(context), 1),
            "prefill": _per_token(plan.prefill(context), context),
            "caches": {**plan.kv.to_json(), "sequence_bytes": plan.kv.bytes(context)},
        }


def _per_token(cost: Cost, tokens: int) -> dict[str, float]:
    return {"flops": cost.flops / tokens, "bytes": cost.bytes / tokens}
