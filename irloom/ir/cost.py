"""What a step of a model costs, counted from the signatures of its ops: weights, FLOPs, bytes.

The count is what a machine must do if every operand and result moves once: a fusion shows as fewer bytes.
Attention depends on how much is in the cache: an op's count may use the symbol ``C``, the tokens that a
token attends to. That of experts may use ``E``, how many of them the tokens choose.

``predicted_seconds`` is that count against a device: a node takes as long as its bytes at the device's
bandwidth or its FLOPs at its rate, whichever is longer; a step takes the sum of its nodes. Launches cost
nothing, nothing overlaps, and no node keeps what the next one reads: a fused program is predicted faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .device import Device
from .dims import evaluate, product
from .elem import ELEMS, Elem, Paged, Quant
from .graph import Func, Loop, Module, Node, Param, Stmt, Value
from .ops.attention import reach
from .ops.experts import experts_used
from .plan import KVPlan, columns, kv_plan, show_bytes
from .types import Type
from .weight_expr import show_weight, tensor_name, tensor_names


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of a step."""

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.bytes * times)

    @property
    def intensity(self) -> float:
        """FLOPs per byte: below a machine's ratio of the two, memory is the limit."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Seconds:
    """Predicted seconds: in nodes that ``memory`` bounds, and in those that ``compute`` bounds."""

    memory: float
    compute: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.memory + other.memory, self.compute + other.compute)

    def __mul__(self, times: int) -> Seconds:
        return Seconds(self.memory * times, self.compute * times)

    @property
    def total(self) -> float:
        """Both."""
        return self.memory + self.compute

    @property
    def bound(self) -> str:
        """``memory`` or ``compute``: where more of the time goes."""
        return "compute" if self.compute > self.memory else "memory"


@dataclass(frozen=True)
class Weights:
    """All weights of a model, each counted once however often it is used: entries, and bytes as stored.

    ``active`` entries are read for one token: of tables a row, of experts those that it chooses. ``elements``
    says of each element how many entries are in it, and their bytes, with those of their scales.
    """

    parameters: int
    active: int
    bytes: int
    elements: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def to_json(self) -> dict[str, Any]:
        """For ``plan.json``."""
        each = {e: {"parameters": n, "bytes": size} for e, (n, size) in self.elements.items()}
        return {"parameters": self.parameters, "active": self.active, "bytes": self.bytes, "elements": each}

    def __str__(self) -> str:
        head = f"weights: {self.parameters:,} parameters, {show_bytes(self.bytes)}"
        each = [f"{n:,} in {e}, {show_bytes(size)}" for e, (n, size) in self.elements.items()]
        parts = [f"         {'; '.join(each)}"] if len(each) > 1 else []
        return "\n".join([f"{head}; a token reads {self.active:,} of them", *parts])


@dataclass(frozen=True)
class Plan:
    """A module's weights, caches and costs; ``step`` prices any step."""

    module: Module
    weights: Weights
    kv: KVPlan

    def step(self, tokens: int, seqs: int, context: int) -> Cost:
        """A step of ``tokens``, in equal parts over ``seqs`` sequences that have ``context`` then."""
        return step_cost(self.module, tokens, seqs, context)

    def decode(self, context: int, seqs: int = 1) -> Cost:
        """A step that adds a token to each sequence."""
        return self.step(seqs, seqs, context)

    def prefill(self, tokens: int) -> Cost:
        """A step that reads a whole prompt."""
        return self.step(tokens, 1, tokens)

    def seconds(self, device: Device, tokens: int, seqs: int, context: int) -> Seconds:
        """How long such a step takes on ``device``, by its datasheet; see ``predicted_seconds``."""
        return predicted_seconds(self.module, device, tokens, seqs, context)

    def table(self, context: int = 1024) -> str:
        """For people: weights, one decode and one prefill per token, and the caches."""
        rows = [["", "FLOPs/token", "bytes/token", "FLOPs/byte"]]
        for name, cost, tokens in [
            (f"decode at {context}", self.decode(context), 1),
            (f"decode at {context}, 16 together", self.decode(context, 16), 16),
            (f"prefill of {context}", self.prefill(context), context),
        ]:
            rows.append(
                [
                    name,
                    f"{cost.flops / tokens:,.0f}",
                    show_bytes(cost.bytes / tokens),
                    f"{cost.intensity:.1f}",
                ]
            )
        caches = ["", self.kv.table()] if self.kv.groups else []
        return "\n".join([str(self.weights), "", columns(rows), *caches])

    def to_json(self) -> dict[str, Any]:
        """For ``plan.json``."""
        return {"weights": self.weights.to_json(), "kv": self.kv.to_json()}


def plan(m: Module) -> Plan:
    """What ``m`` needs, from its text alone: no weight is read."""
    return Plan(m, count_weights(m), kv_plan(m))


def count_weights(m: Module) -> Weights:
    """Parameters and bytes of every distinct weight that some call binds; constants are no parameters."""
    read: dict[tuple[str, Type], int] = {}
    for f, number in _runs(m):
        entries = _entries(f)
        for p in f.weights:
            if p.weight is not None and tensor_names(p.weight, number):
                text = show_weight(p.weight)
                key = tensor_name(text, number), p.type
                read[key] = max(read.get(key, 0), entries.get(p, 0))
    elements: dict[str, tuple[int, int]] = {}
    for _, t in read:
        n, size = elements.get(str(t.elem), (0, 0))
        elements[str(t.elem)] = n + evaluate(product(t.dims), {}), size + evaluate(t.nbytes, {})
    return Weights(
        sum(n for n, _ in elements.values()),
        sum(read.values()),
        sum(size for _, size in elements.values()),
        elements,
    )


def _entries(f: Func) -> dict[Value, int]:
    """How many entries of each weight of a function one token reads."""
    out: dict[Value, int] = {}
    for n in _nodes(f.body):
        terms = zip(n.op.signature.ins, n.args, strict=False)
        looked_up = [x for term, x in terms if any(axis.indexed for axis in term.axes or ())]
        for v in n.values:
            if isinstance(v, Param) and v.weight is not None:
                rows, *rest = v.type.dims or (1,)
                count = evaluate(product([(_experts(n, 1) or 1) if v in looked_up else rows, *rest]), {})
                out[v] = max(out.get(v, 0), count)
    return out


def _runs(m: Module) -> Iterator[tuple[Func, int | None]]:
    """Every function that a step runs, with its layer number, as often as it runs."""
    yield m.main, None
    for call, number, _ in m.calls():
        yield m.funcs[call.callee], number


def step_cost(m: Module, tokens: int, seqs: int, context: int) -> Cost:
    """FLOPs and bytes of one step; see ``Plan.step``."""
    costs = (node_cost(n, tokens, seqs, context) * times for n, times in step_nodes(m))
    return sum(costs, Cost(0, 0))


def step_nodes(m: Module) -> Iterator[tuple[Node, int]]:
    """Every node of a program, and how often a step runs it."""
    for name, times in Counter(f.name for f, _ in _runs(m)).items():
        for node in _nodes(m.funcs[name].body):
            yield node, times


def predicted_seconds(what: Node | Module, device: Device, tokens: int, seqs: int, context: int) -> Seconds:
    """How long a node, or a whole step, takes on ``device``: see the module's docstring for what is assumed.

    The step is one of ``Plan.step``: ``tokens`` in equal parts over ``seqs`` sequences of ``context``.
    """
    if isinstance(what, Module):
        times = (predicted_seconds(n, device, tokens, seqs, context) * k for n, k in step_nodes(what))
        return sum(times, Seconds(0.0, 0.0))
    cost = node_cost(what, tokens, seqs, context)
    memory, compute = cost.bytes / device.bandwidth, cost.flops / device.rate(computed_in(what))
    return Seconds(memory, 0.0) if memory >= compute else Seconds(0.0, compute)


def computed_in(n: Node) -> Elem:
    """The element that a node computes in: that of its first float operand, to which weights are unpacked.

    A product of ``bf16`` rows with ``i4`` weights is one in ``bf16``; of ``f8e4m3`` rows, in that.
    """
    weights = {v for v in n.values if isinstance(v, Param) and v.weight is not None}
    values = [v for v in (*n.values, *n.results) if v not in weights or isinstance(v.type.elem, Elem)]
    given = [v.type.elem.base if isinstance(v.type.elem, Quant) else v.type.elem for v in values]
    elems = [e for e in given if isinstance(e, Elem)]
    return next((e for e in elems if e.kind == "float"), next(iter(elems), ELEMS["f32"]))


def _nodes(body: list[Stmt]) -> Iterator[Node]:
    """Ops of a body, those in loops too; what a call costs is its function's."""
    for s in body:
        if isinstance(s, Node):
            yield s
        elif isinstance(s, Loop):
            yield from _nodes(s.body)


def node_cost(n: Node, tokens: int, seqs: int, context: int) -> Cost:
    """FLOPs and bytes of one op in such a step."""
    new = max(tokens // seqs, 1)
    window = _window(n)
    env = {"T": tokens, "S": seqs, "C": _attended(new, context, window)}
    flops = evaluate(n.op.count_flops(n.operands, n.attrs), env)
    env["C"] = context if window is None else min(context, window + new - 1)
    env["E"] = _experts(n, tokens)
    return Cost(flops, evaluate(n.op.count_bytes(n.operands, n.attrs), env))


def _window(n: Node) -> int | None:
    seen = reach(n.attrs)
    kept = [v.type.elem.window for v in n.values if isinstance(v.type.elem, Paged)]
    return next(iter(kept), None) if seen is None else seen


def _experts(n: Node, tokens: int) -> int:
    """How many experts a node reads for ``tokens``; 0 for one that has none."""
    at = {"expert_linear": 2, "moe": 3}.get(n.op.name)
    return 0 if at is None else experts_used(n.values[at].type, n.values[1].type, tokens)


def _attended(new: int, context: int, window: int | None) -> int:
    """How many tokens each of the ``new`` last of ``context`` attends to, itself included, on average."""
    reach = context if window is None else window
    total = sum(min(at + 1, reach) for at in range(max(context - new, 0), context))
    return -(-total // new)
