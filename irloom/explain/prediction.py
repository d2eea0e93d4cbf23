"""What a device would make of a model: how many sequences fit, how long steps take, what bounds them.

These are bounds by a datasheet, not measurements: see ``ir.cost`` for what is assumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from irloom.ir.cost import Plan, Seconds, computed_in, node_cost, predicted_seconds, step_nodes
from irloom.ir.device import Device
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Module
from irloom.ir.plan import columns, show_bytes

BATCHES = (1, 16, 64)


@dataclass(frozen=True)
class PredictedStep:
    """A step: ``tokens`` in equal parts over ``seqs`` sequences that have ``context`` tokens then.

    ``ops`` has each op's share of the time, the largest first.
    """

    name: str
    tokens: int
    seqs: int
    context: int
    seconds: Seconds
    fits: bool
    ops: dict[str, float]

    @property
    def rate(self) -> float:
        """Tokens a second, over all sequences."""
        return self.tokens / self.seconds.total

    @property
    def bound(self) -> str:
        """``memory`` or ``compute``, and the share of the time."""
        share = getattr(self.seconds, self.seconds.bound) / self.seconds.total
        return f"{self.seconds.bound} {share:.0%}" + ("" if self.fits else ", does not fit")

    def to_json(self) -> dict[str, Any]:
        """For ``--json``: seconds, and what part of them each resource bounds."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "seqs": self.seqs,
            "context": self.context,
            "seconds": self.seconds.total,
            "tokens_per_second": self.rate,
            "bound": self.seconds.bound,
            "memory_seconds": self.seconds.memory,
            "compute_seconds": self.seconds.compute,
            "fits": self.fits,
            "ops": self.ops,
        }


@dataclass(frozen=True)
class Prediction:
    """A device, how many sequences of ``context`` tokens it holds beside the weights, and its steps.

    ``elem`` is the one that most is computed in. What is not ``cached`` takes no room by the sequence.
    """

    device: Device
    elem: str
    context: int
    cached: bool
    holds: int
    steps: tuple[PredictedStep, ...]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        d = self.device
        figures = {"bandwidth": d.bandwidth, "flops": d.flops, "memory": d.memory, "source": d.source}
        return {
            "name": d.name,
            **figures,
            "sequences": self.holds,
            "steps": [s.to_json() for s in self.steps],
        }

    def __str__(self) -> str:
        """For people: the device's figures, and a row per step."""
        d, flops = self.device, self.device.rate(ELEMS[self.elem])
        rates = f"{_si(d.bandwidth)}B/s, {_si(flops)}FLOP/s in {self.elem}"
        has = f"{d.name}: {rates}, {show_bytes(d.memory)}"
        held = f"; {self.holds:,} sequences of {self.context} tokens fit beside the weights"
        rows = [["", "ms", "tokens/s", "bound by"]]
        for s in self.steps:
            rows.append([s.name, _digits(s.seconds.total * 1e3), f"{s.rate:,.0f}", s.bound])
        where = f"{self.steps[0].name}: {_most(self.steps[0].ops)}; prefill: {_most(self.steps[-1].ops)}"
        return "\n".join([has + (held if self.cached else ""), columns(rows), where])


def predict(plan: Plan, device: Device, context: int, batches: Sequence[int] = BATCHES) -> Prediction:
    """Decode steps of several sequences together, and a prefill of one, at ``context`` tokens."""
    left = max(device.memory - plan.weights.bytes, 0)

    def step(name: str, tokens: int, seqs: int) -> PredictedStep:
        seconds, ops = Seconds(0.0, 0.0), dict[str, float]()
        for n, times in step_nodes(plan.module):
            each = predicted_seconds(n, device, tokens, seqs, context) * times
            seconds += each
            ops[n.op.name] = ops.get(n.op.name, 0.0) + each.total
        fits = plan.weights.bytes + plan.kv.bytes(context, seqs) <= device.memory
        spent = sorted(ops.items(), key=lambda item: -item[1])
        shares = {op: x / seconds.total for op, x in spent}
        return PredictedStep(name, tokens, seqs, context, seconds, fits, shares)

    names = {n: f"decode at {context}" + (f", {n} together" if n > 1 else "") for n in batches}
    steps = [step(name, n, n) for n, name in names.items()]
    steps.append(step(f"prefill of {context}", context, 1))
    cached = bool(plan.kv.groups)
    return Prediction(
        device, main_elem(plan.module), context, cached, plan.kv.fits(left, context), tuple(steps)
    )


def main_elem(m: Module) -> str:
    """The element that most FLOPs of a program are computed in."""
    flops: Counter[str] = Counter()
    for n, times in step_nodes(m):
        flops[computed_in(n).name] += node_cost(n, 64, 1, 64).flops * times
    return flops.most_common(1)[0][0]


def _si(figure: float) -> str:
    """A rate with its decimal prefix.

    >>> _si(4.8e12), _si(15.1e9)
    ('4.8 T', '15.1 G')
    """
    prefix, unit = next((x for x in (("T", 1e12), ("G", 1e9)) if figure >= x[1]), ("M", 1e6))
    return f"{figure / unit:,.4g} {prefix}"


def _digits(x: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _most(ops: dict[str, float], least: float = 0.01, most: int = 4) -> str:
    """The ops that the time goes to."""
    return ", ".join(f"{op} {share:.0%}" for op, share in list(ops.items())[:most] if share >= least)
