"""What irloom makes of a model, before anything is built: no weights are read, and no device is used.

What traces, which model ops were found and what almost was one, what each target has no kernel for, and what
a step costs in FLOPs, bytes and cache memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .backends.core import backend
from .driver import Choice, passes_of, trace
from .driver import targets as all_targets
from .frontends.hf.hub import find
from .ir.copy import with_elem
from .ir.cost import Cost, Plan
from .ir.elem import ELEMS
from .ir.errors import CheckpointError, IrloomError, TraceError
from .ir.graph import Module
from .ir.plan import show_bytes
from .ir.show import show
from .passes import Record, run_pipeline
from .passes.raised import Raised, count

PIPELINE = (
    "canonicalize", "raise", "canonicalize", "outline", "absorb-mla", "gather-logits", "fuse-qkv", "fuse-mlp",
    "fuse-norm", "kv-cache", "kv-plan",
)  # fmt: skip
"""What every target does to a program, whatever it does besides."""

FLOATS = ("bf16", "f16", "f32")


def explain(
    model: str | Path,
    targets: Sequence[Choice] = (Choice(),),
    context: int = 8192,
    memory: int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Explanation:
    """Trace ``model`` from its config and say what there is to know of it.

    Costs are those of weights and caches in ``dtype``, by default as stored, for sequences of ``context``
    tokens; ``memory``, in bytes, is for weights and caches together. What does not trace is no error here
    (see ``Explanation.refused``), but a model that is not there is.
    """
    path, start = find(str(model), trust_remote_code, weights=False), time.perf_counter()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory", hint="give a path or a hub id")
    path = path.parent if path.name == "config.json" else path
    try:
        traced = trace(path, dtype, trust_remote_code=trust_remote_code)
    except (TraceError, CheckpointError) as error:
        return Explanation(path.resolve().name, context, memory, str(error))
    seconds = time.perf_counter() - start
    made, record = run_pipeline(traced, PIPELINE)
    found = Found(seconds, traced, made, record)
    return Explanation(
        traced.model, context, memory, None, found, {c.target: _on(c, traced) for c in targets}
    )


@dataclass(frozen=True)
class Target:
    """A target and this model: what it ``lacks`` on this machine, why it ``refuses`` the program, and the ops
    that run their reference body: how many nodes, and the share of FLOPs of all nodes of these ops.
    """

    lacks: str | None
    refuses: str | None = None
    reference: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        ops = {op: {"nodes": n, "flops_share": round(x, 6)} for op, (n, x) in self.reference.items()}
        return {"lacks": self.lacks, "refuses": self.refuses, "reference_bodies": ops}

    def __str__(self) -> str:
        if self.refuses is not None:
            return f"refuses it: {self.refuses}"
        ops = _counted({op: n for op, (n, _) in self.reference.items()})
        share = sum(x for _, x in self.reference.values())
        runs = f"reference bodies for {ops}: {share:.2%} of the FLOPs" if ops else "a kernel for every op"
        return f"{runs}; this machine lacks {self.lacks}" if self.lacks else runs


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
        return [place.removeprefix("main.") for place in self.record.step("outline").changes.places]

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


@dataclass(frozen=True)
class Explanation:
    """What is known of a model: why it does not trace (``refused``), or what was ``found``."""

    model: str
    context: int
    memory: int | None
    refused: str | None
    found: Found | None = None
    targets: Mapping[str, Target] = field(default_factory=dict[str, Target])

    @property
    def ok(self) -> bool:
        """Whether it traces, and no target refuses it."""
        return self.refused is None and all(t.refuses is None for t in self.targets.values())

    @property
    def fits(self) -> int | None:
        """How many sequences the memory holds beside the weights; None where it is not known."""
        if self.found is None or self.memory is None:
            return None
        left = self.memory - self.found.plan.weights.bytes
        return self.found.plan.kv.fits(max(left, 0), self.context)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        head = {"model": self.model, "traces": self.refused or True, "context": self.context}
        if self.found is None:
            return head
        return {
            **head,
            **self.found.to_json(self.context),
            "fits": None if self.memory is None else {"memory": self.memory, "sequences": self.fits},
            "targets": {name: t.to_json() for name, t in self.targets.items()},
        }

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.model} does not trace\n{self.refused}"
        facts = self.to_json()
        rows = [
            ("traced", "in {seconds:.1f} s, {nodes[trace]:,} nodes".format(**facts)),
            *(
                (f"  {name}", _shortened(said))
                for name, _, said in (x.partition(": ") for x in self.found.layers)
            ),
            ("program", "{nodes[made]:,} nodes, {lines[made]:,} lines".format(**facts)),
            ("model ops", _counted(facts["model_ops"]) or "none"),
            ("tensor ops", _counted(facts["tensor_ops"]) or "none"),
            ("", f"{facts['flops_in_model_ops']:.2%} of the FLOPs are in model ops"),
            *(("almost", miss) for miss in facts["near_misses"]),
            *((name, str(t)) for name, t in self.targets.items()),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {said}".rstrip() for name, said in rows]
        return "\n".join([self.model, *lines, "", self.found.plan.table(self.context), *self._memory()])

    def _memory(self) -> list[str]:
        if self.found is None or self.memory is None:
            return []
        each = self.found.plan.kv.bytes(self.context)
        said = f"{show_bytes(self.memory)} hold {self.fits:,} sequences of {self.context} tokens"
        return ["", f"{said} beside the weights, {show_bytes(each)} each"]


def _per_token(cost: Cost, tokens: int) -> dict[str, float]:
    return {"flops": cost.flops / tokens, "bytes": cost.bytes / tokens}


def _shortened(layers: str, most: int = 4) -> str:
    """The ranges of layers in a line of ``Found.layers``, the middle ones left out where there are many.

    >>> _shortened("9 nodes, layers 0-2, 4-6, 8-10, 12-14, 16-18")
    '9 nodes, layers 0-2, 4-6, ... 16-18'
    """
    ranges = layers.split(", ")
    return layers if len(ranges) <= most + 1 else ", ".join([*ranges[:3], f"... {ranges[-1]}"])


def _counted(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{op} {n}" if n > 1 else op for op, n in ops.items())


def _on(choice: Choice, traced: Module) -> Target:
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
    return Target(lacks, None, {op: (n, share[op]) for op, n in bodies.items()})
