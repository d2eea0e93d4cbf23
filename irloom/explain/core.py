"""A model explained from its config: for people, and as JSON.

What traces, which model ops were found and what almost was one, what each target has no kernel for, and what
a step costs in FLOPs, bytes and cache memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irloom.backends.artifact import EngineReader, is_engine, read_manifest
from irloom.backends.machine import device
from irloom.driver import Choice, passes_of, trace
from irloom.frontends.core import frontend_of
from irloom.frontends.hf.hub import find
from irloom.ir.errors import CheckpointError, IrloomError, TraceError
from irloom.ir.graph import Module
from irloom.ir.plan import show_bytes
from irloom.passes import Record, run_pipeline
from irloom.passes.pipeline import Pipeline

from .found import Found
from .prediction import Prediction, predict
from .target import Target, counted, on

PIPELINE = (
    "canonicalize", "raise", "canonicalize", "outline", "absorb-mla", "gather-logits", "fuse-qkv", "fuse-mlp",
    "fuse-norm", "kv-cache", "kv-plan",
)  # fmt: skip
"""What every target does to a program, whatever it does besides; for one whose target refuses it."""

CONTEXT = 8192
NEAR = 6
"""Near misses that are shown to people; ``--json`` has all, ``--why PASS`` those of a pass."""


def explain(
    model: str | Path,
    targets: Sequence[Choice] = (Choice(),),
    context: int | None = None,
    memory: int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    devices: Sequence[str] = (),
) -> Explanation:
    """Trace ``model`` from its config and say what there is to know of it.

    Figures are those of the program that the first of ``targets`` compiles, with weights and caches in
    ``dtype``, by default as stored, for sequences of ``context`` tokens: by default 8192, or as many as the
    model is made for. ``memory``, in bytes, is for weights and caches together; ``devices`` are those to
    predict steps on (see ``ir.device``). What does not trace is no error here (see ``Explanation.refused``),
    but a model that is not there is, and so is a pipeline or a device that is none.
    """
    path, start = find(str(model), trust_remote_code, weights=False), time.perf_counter()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory", hint="give a path or a hub id")
    path = path.parent if path.name == "config.json" else path
    if is_engine(path):  # its program has every pass behind it
        targets = [Choice(read_manifest(path).target, ())]
    found_devices = [device(d) for d in devices]
    passes = [passes_of(c) for c in targets]
    try:
        traced, made_for = _program(path, dtype, trust_remote_code)
    except (TraceError, CheckpointError) as error:
        return Explanation(path.resolve().name, context or CONTEXT, memory, str(error))
    seconds = time.perf_counter() - start
    context = context or min(CONTEXT, made_for)
    made, record = _made(traced, passes[0] if passes else PIPELINE)
    found = Found(seconds, traced, made, record)
    return Explanation(
        traced.model,
        context,
        memory,
        None,
        found,
        {c.target: on(c, traced) for c in targets},
        tuple(predict(found.plan, d, context) for d in found_devices),
    )


def _program(path: Path, dtype: str | None, trust: bool) -> tuple[Module, int]:
    """The program of a model or an engine, and the tokens that a sequence may have."""
    if is_engine(path):
        reader = EngineReader(path)
        return reader.module(), int(reader.manifest.settings["max_context"])
    return trace(path, dtype, trust_remote_code=trust), frontend_of(path).facts(path).max_context


def _made(traced: Module, passes: Pipeline) -> tuple[Module, Record]:
    try:
        return run_pipeline(traced, passes)
    except IrloomError:  # the target's row says why
        return run_pipeline(traced, PIPELINE)


@dataclass(frozen=True)
class Explanation:
    """What is known of a model: why it does not trace (``refused``), or what was ``found``."""

    model: str
    context: int
    memory: int | None
    refused: str | None
    found: Found | None = None
    targets: Mapping[str, Target] = field(default_factory=dict[str, Target])
    predictions: tuple[Prediction, ...] = ()

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
            "devices": [p.to_json() for p in self.predictions],
        }

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.model} does not trace\n{self.refused}"
        facts = self.to_json()
        more = len(facts["near_misses"]) - NEAR
        rows = [
            ("traced", "in {seconds:.1f} s, {nodes[trace]:,} nodes".format(**facts)),
            *(
                (f"  {name}", _shortened(said))
                for name, _, said in (x.partition(": ") for x in self.found.layers)
            ),
            ("program", "{nodes[made]:,} nodes, {lines[made]:,} lines".format(**facts)),
            ("model ops", counted(facts["model_ops"]) or "none"),
            ("tensor ops", counted(facts["tensor_ops"]) or "none"),
            ("", f"{facts['flops_in_model_ops']:.2%} of the FLOPs are in model ops"),
            *(("almost", miss) for miss in facts["near_misses"][:NEAR]),
            *([("", f"... and {more} more; --json has them all")] if more > 0 else []),
            *(
                (name if i == 0 else "", line)
                for name, t in self.targets.items()
                for i, line in enumerate(str(t).splitlines())
            ),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {said}".rstrip() for name, said in rows]
        steps = [line for p in self.predictions for line in ("", str(p))]
        return "\n".join(
            [self.model, *lines, "", self.found.plan.table(self.context), *self._memory(), *steps]
        )

    def _memory(self) -> list[str]:
        if self.found is None or self.memory is None:
            return []
        each = self.found.plan.kv.bytes(self.context)
        said = f"{show_bytes(self.memory)} hold {self.fits:,} sequences of {self.context} tokens"
        return ["", f"{said} beside the weights, {show_bytes(each)} each"]


def _shortened(layers: str, most: int = 4) -> str:
    """The ranges of layers in a line of ``Found.layers``, the middle ones left out where there are many.

    >>> _shortened("9 nodes, layers 0-2, 4-6, 8-10, 12-14, 16-18")
    '9 nodes, layers 0-2, 4-6, ... 16-18'
    """
    ranges = layers.split(", ")
    return layers if len(ranges) <= most + 1 else ", ".join([*ranges[:3], f"... {ranges[-1]}"])
