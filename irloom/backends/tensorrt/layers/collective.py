"""What the ranks of a sharded program tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import GUIDE, NUMBERS, allow

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter

REDUCTIONS = ("sum", "prod", "max", "min", "avg")


@dataclass(frozen=True)
class DistCollective(Layer):
    """``all_reduce``, ``all_gather`` or ``reduce_scatter`` of ``x`` over the ``ranks`` of one group.

    Gathering and scattering are along dim 0, and ranks follow each other in the order of ``ranks``.
    """

    source = f"{GUIDE}/multi-device-inference.html"

    op: str
    x: Tensor
    ranks: tuple[int, ...]
    reduce: str | None = None

    def infer(self) -> tuple[Inferred, ...]:
        if self.op not in ("all_reduce", "all_gather", "reduce_scatter"):
            raise self.refuse(f"no collective {self.op!r}")
        allow(self, "x", self.x, NUMBERS)
        if (self.reduce in REDUCTIONS) != (self.op != "all_gather"):
            raise self.refuse(f"{self.op} with the reduction {self.reduce}")
        if not self.ranks or len(set(self.ranks)) != len(self.ranks):
            raise self.refuse(f"{list(self.ranks)} are no ranks")
        if self.op == "all_reduce":
            return ((self.x.elem, self.x.dims),)
        if not self.x.dims:
            raise self.refuse(f"{self.x} has no dim 0")
        first, *rest = self.x.dims
        if self.op == "all_gather":
            return ((self.x.elem, (first * len(self.ranks), *rest)),)
        if not isinstance(first, int) or first % len(self.ranks):
            raise self.refuse(f"{len(self.ranks)} ranks do not divide dim 0 of {self.x}")
        return ((self.x.elem, (first // len(self.ranks), *rest)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch
        import torch.distributed as dist

        x = value(self.x).contiguous()
        if len(self.ranks) == 1:
            return (x,)
        ways = {"sum": "SUM", "prod": "PRODUCT", "max": "MAX", "min": "MIN", "avg": "AVG"}
        how: Any = getattr(dist.ReduceOp, ways[self.reduce or "sum"])
        if self.op == "all_reduce":
            x = x.clone()
            dist.all_reduce(x, how)
            return (x,)
        parts = [torch.empty_like(x) for _ in self.ranks]
        if self.op == "all_gather":
            dist.all_gather(parts, x)
            return (torch.cat(parts),)
        mine = torch.empty_like(x[: len(x) // len(self.ranks)])
        dist.reduce_scatter_tensor(mine, x, how)
        return (mine,)

    def emit(self, to: Emitter) -> Sequence[Any]:
        import numpy as np

        op = getattr(to.trt.CollectiveOperation, self.op.upper())
        how = getattr(to.trt.ReduceOperation, (self.reduce or "none").upper())
        groups = np.array(self.ranks, np.int64)
        layer = to.network.add_dist_collective(to[self.x], op, how, -1, groups)
        layer.num_ranks = len(self.ranks)
        return [layer.get_output(0)]
