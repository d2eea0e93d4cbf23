"""Lowering of what ranks tell each other."""

from __future__ import annotations

from .context import Context, lowers
from .layers.collective import DistCollective
from .network import Tensor


@lowers("all_reduce")
def all_reduce(c: Context) -> Tensor:
    """One collective over the ranks of the mesh axis."""
    ranks = tuple(range(c.to.module.mesh.get(c.attr("axis"), 1)))
    return c["x"] if len(ranks) == 1 else c.add(DistCollective("all_reduce", c["x"], ranks, "sum"))
