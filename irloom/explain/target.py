"""A target and a model: what it lacks, what it refuses, and which ops it has no kernel for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from irloom.backends.core import Expressed, NetworkBackend, Networks, backend
from irloom.driver import Choice, passes_of
from irloom.driver import targets as all_targets
from irloom.ir.copy import with_elem
from irloom.ir.elem import ELEMS
from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.passes import run_pipeline
from irloom.passes.raised import count

FLOATS = ("bf16", "f16", "f32")


@dataclass(frozen=True)
class Target:
    """A target and this model: what it ``lacks`` on this machine, why it ``refuses`` the program, and the ops
    that run their reference body: how many nodes, and the share of FLOPs of all nodes of these ops. Where
    such an op has a kernel, ``declined`` says why that does not fit. Of a target that builds networks,
    ``networks`` says what becomes of each op.
    """

    lacks: str | None
    refuses: str | None = None
    reference: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    declined: Mapping[str, str] = field(default_factory=dict[str, str])
    networks: Networks | None = None

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        ops = {op: {"nodes": n, "flops_share": round(x, 6)} for op, (n, x) in self.reference.items()}
        why = {"declined": dict(self.declined)} if self.declined else {}
        made = self.networks
        layers = {"segments": made.segments, "ops": [e.to_json() for e in made.ops]} if made else {}
        return {"lacks": self.lacks, "refuses": self.refuses, "reference_bodies": ops, **why, **layers}

    def __str__(self) -> str:
        if self.refuses is not None:
            return f"refuses it: {self.refuses}"
        if self.networks is not None:
            return "\n".join(self._networks(self.networks))
        ops = counted({op: n for op, (n, _) in self.reference.items()})
        share = sum(x for _, x in self.reference.values())
        runs = f"reference bodies for {ops}: {share:.2%} of the FLOPs" if ops else "a kernel for every op"
        runs += "".join(f"; no kernel of {op} for {why}" for op, why in self.declined.items())
        return f"{runs}; this machine lacks {self.lacks}" if self.lacks else runs

    def _networks(self, made: Networks) -> Iterator[str]:
        """A line for all, then which ops each layer expresses, then those that there is more to say of."""
        some = "1 segment" if made.segments == 1 else f"{made.segments} segments"
        share = sum(x for _, x in self.reference.values())
        outside = "every op in layers" if made.whole else f"ops outside of them do {share:.2%} of the FLOPs"
        yield f"{some}, {outside}" + (f"; this machine lacks {self.lacks}" if self.lacks else "")
        plain: dict[str, list[str]] = {}
        for e in made.ops:
            if e.how == "native" and not e.form:
                plain.setdefault(", ".join(e.layers) or "no layer", []).append(_times(e))
        yield "native: " + "; ".join(f"{layer}: {', '.join(ops)}" for layer, ops in plain.items())
        for e in made.ops:
            if e.how != "native" or e.form:
                yield f"{e.how}: {_times(e)}: {e.said}"


def on(choice: Choice, traced: Module) -> Target:
    """The program as the target would compile it, in the element that it computes in."""
    made = backend(choice.target)
    m = traced.copy()
    for elem in FLOATS:
        with_elem(m, ELEMS[elem], ELEMS[made.dtype])
    lacks = all_targets()[choice.target]
    try:
        m, record = run_pipeline(m, passes_of(choice))
        bodies = made.fallbacks(m)
    except IrloomError as error:
        return Target(lacks, str(error))
    share = count(m, record).shares
    bodies_of = {op: (n, share[op]) for op, n in bodies.items()}
    networks = made.networks(m) if isinstance(made, NetworkBackend) else None
    return Target(lacks, None, bodies_of, made.declined(m), networks)


def _times(e: Expressed) -> str:
    return counted({e.op: e.nodes})


def counted(ops: Mapping[str, int]) -> str:
    """Ops for people.

    >>> counted({"linear": 5, "embedding": 1})
    'linear 5, embedding'
    """
    return ", ".join(f"{op} {n}" if n > 1 else op for op, n in ops.items())
