"""How much of a program is model ops: which were found, which tensor ops stayed, their share of FLOPs.

Counted on the program as backends compile it, after raising and fusing, for a step of 64 tokens. Every other
op counts against the share: products of activations, the sums of a residual stream, arithmetic on gates. A
product of matrices outgrows arithmetic on its entries with the width of a model, so the share of a tiny model
is a lower bound for the real one, and a strict one: at a width of 64 one addition to the residual stream
weighs as much as fifty do in a model of 4096.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from irloom.ir.cost import node_cost
from irloom.ir.graph import Func, Loop, Module, Node, Stmt
from irloom.ir.op import Op

from .pipeline import run_pipeline
from .record import Record

PIPELINE = (
    "canonicalize",
    "raise",
    "canonicalize",
    "outline",
    "absorb-mla",
    "fuse-qkv",
    "fuse-mlp",
    "fuse-moe",
    "fuse-norm",
)
GOAL = 0.99
TOKENS = 64
TENSOR = ("elementwise", "shape", "reduce", "index", "matmul")
"""Files of ``ir/ops`` with the closed set that a traced model decomposes to."""

WHOLE = ("linear", "embedding", "gelu", "silu", "relu", "softcap")
"""Of these, what nothing could be raised to: a projection, an activation is one op in every model."""


@dataclass(frozen=True)
class Raised:
    """Nodes by op, FLOPs by op, and what almost matched with the reason, the closest first."""

    model_ops: dict[str, int]
    tensor_ops: dict[str, int]
    flops: dict[str, int]
    near_misses: list[str]

    @property
    def share(self) -> float:
        """FLOPs in model ops, of all."""
        inside = sum(n for name, n in self.flops.items() if name in self.model_ops)
        return inside / max(sum(self.flops.values()), 1)

    @property
    def shares(self) -> dict[str, float]:
        """Each op's share of the FLOPs."""
        total = max(sum(self.flops.values()), 1)
        return {op: n / total for op, n in self.flops.items()}

    @property
    def enough(self) -> bool:
        """Whether so little is left in tensor ops that it does not count."""
        return self.share >= GOAL

    @property
    def lacking(self) -> str:
        """What keeps the share down: the ops with the most FLOPs outside."""
        total = sum(self.flops.values())
        left = Counter({name: n for name, n in self.flops.items() if name in self.tensor_ops})
        worst = ", ".join(f"{name} {n / total:.1%}" for name, n in left.most_common(4))
        return f"{self.share:.1%} of the FLOPs are in model ops; in tensor ops: {worst}"


def measure(m: Module) -> Raised:
    """Raise and fuse a traced program, and count what became of it."""
    return count(*run_pipeline(m, PIPELINE))


def count(m: Module, record: Record) -> Raised:
    """Count the ops of a program that is raised already; ``record`` is that of its pipeline."""
    nodes: Counter[Op] = Counter()
    flops: Counter[str] = Counter()
    times = Counter(call.callee for call, _, _ in m.calls()) + Counter({"main": 1})
    for f in m.funcs.values():
        for n in _nodes(f):
            nodes[n.op] += 1
            flops[n.op.name] += node_cost(n, TOKENS, 1, TOKENS).flops * times[f.name]
    ops = sorted(nodes.items(), key=lambda item: (-item[1], item[0].name))
    closest = sorted(record.near_misses, key=lambda miss: (-miss[1].share, -miss[1].depth))
    return Raised(
        {op.name: n for op, n in ops if not is_tensor_op(op)},
        {op.name: n for op, n in ops if is_tensor_op(op)},
        dict(flops),
        list(dict.fromkeys(_without_numbers(f"{p}: {miss}") for p, miss in closest)),
    )


def is_tensor_op(op: Op) -> bool:
    """Whether an op belongs to what a traced model decomposes to, and says nothing about the model."""
    return PurePath(op.place.rpartition(":")[0]).stem in TENSOR and op.name not in WHOLE


def _nodes(f: Func) -> Iterator[Node]:
    todo: list[Stmt] = list(f.body)
    while todo:
        s = todo.pop()
        if isinstance(s, Loop):
            todo += s.body
        elif isinstance(s, Node):
            yield s


def _without_numbers(text: str) -> str:
    """The same reason at two places, which differ in the numbers of values, is one."""
    return re.sub(r"_\d+\b", "", text)
