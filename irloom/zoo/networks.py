"""Every architecture as the networks of a target: whole, with ops between networks, or not at all.

No weights are made and no library is needed: a tiny config is traced, rewritten and lowered.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from irloom.backends.core import NetworkBackend, backend
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.trace import trace_config
from irloom.ir.elem import ELEMS
from irloom.ir.errors import PipelineError
from irloom.passes import run_pipeline
from irloom.zoo.core import Outcome
from irloom.zoo.examine import reason
from irloom.zoo.models import tiny

HEAD = """# Architectures on {target}

Every causal language model of transformers {version} that traces, as networks of the library's own layers.
Written by `irloom zoo --target {target} --docs {page}`: configs are tiny, no weights are read, nothing is
built.

- *whole*: one network a step, everything in layers.
- *split*: some ops run their body between networks, on the same memory.
- *refused*: there is no program for the target.
"""


@dataclass
class NetworkRow:
    """One architecture: whether it traces, and its ops as layers.

    ``traced`` and ``lowered`` are true or say why not. ``native`` and ``composed`` map ops to the layers they
    are made of, ``outside`` those between the ``segments`` to the reason.
    """

    name: str
    target: str = ""
    traced: Outcome = False
    lowered: Outcome = False
    segments: int = 0
    native: dict[str, str] = field(default_factory=dict[str, str])
    composed: dict[str, str] = field(default_factory=dict[str, str])
    outside: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``whole``, ``split``, ``refused``, or ``untraced``."""
        if self.traced is not True:
            return "untraced"
        return "refused" if self.lowered is not True else "split" if self.outside else "whole"

    @property
    def said(self) -> str:
        """What keeps it from being whole."""
        if self.lowered is not True:
            return str(self.lowered if self.traced is True else self.traced)
        return ", ".join(self.outside)

    @classmethod
    def failed(cls, name: str, reason: str) -> Self:
        """An architecture of which nothing can be said but why."""
        return cls(name, traced=reason)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "verdict": self.verdict}

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Self:
        """The row that ``to_json`` was made of."""
        return cls(**{f.name: made[f.name] for f in fields(cls) if f.name in made})


def as_networks(target: str, name: str, columns: Sequence[str] | None = None) -> NetworkRow:
    """One architecture on a target; nothing else is asked of it, whatever ``columns`` are."""
    row, start = NetworkRow(name, target), time.perf_counter()
    made = backend(target)
    assert isinstance(made, NetworkBackend)
    try:
        m = trace_config(tiny(name), TraceOptions(dtype=ELEMS[made.dtype], check=False))
        row.traced = True
        m, _ = run_pipeline(m, made.pipeline)
        found = made.networks(m)
    except Exception as error:  # whatever goes wrong is the reason
        setattr(row, "traced" if row.traced is False else "lowered", reason(error))
    else:
        row.lowered, row.segments = True, found.segments
        for e in found.ops:
            getattr(row, e.how).setdefault(e.op, e.reason or ", ".join(e.layers))
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def check_target(target: str) -> None:
    """``PipelineError`` where a target builds no networks."""
    if not isinstance(backend(target), NetworkBackend):
        raise PipelineError(
            f"target {target} builds no networks of a library's layers", hint="--target tensorrt"
        )


def verdicts(rows: Sequence[NetworkRow]) -> dict[str, int]:
    """How many are whole, split and refused, of those that trace."""
    said = [row.verdict for row in rows if row.traced is True]
    return {**{v: said.count(v) for v in ("whole", "split", "refused")}, "of": len(said)}


def network_page(rows: Sequence[NetworkRow], target: str, version: str, file: str) -> str:
    """The page of a sweep: counts, a line per architecture, and every reason with those it holds for."""
    counts = verdicts(rows)
    lines = [
        HEAD.format(target=target, version=version, page=file),
        _line(list(counts)),
        _line(["---"] * len(counts)),
        _line([str(n) for n in counts.values()]),
        "",
        "## One by one",
        "",
        _line(["architecture", "", "segments", "composed of several layers", "between segments"]),
        _line(["---"] * 5),
    ]
    for row in rows:
        if row.traced is True:
            told = [", ".join(sorted(ops)) for ops in (row.composed, row.outside)]
            lines.append(_line([row.name, row.verdict, str(row.segments), *told]))
    lines += ["", "## What is between segments, or refused, and why", ""]
    for why, names in sorted(_reasons(rows).items()):
        lines.append(f"- {why}: {', '.join(names)}")
    lines += ["", "## Ops in layers", "", _line(["op", "layers", "architectures"]), _line(["---"] * 3)]
    for (op, layers), n in sorted(_layers(rows).items()):
        lines.append(_line([op, layers, str(n)]))
    return "\n".join(lines) + "\n"


def _reasons(rows: Sequence[NetworkRow]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for op, why in row.outside.items():
            found[f"`{op}`: {why}"].append(row.name)
        if row.verdict == "refused":
            found[f"refused: {row.lowered}"].append(row.name)
    return dict(found)


def _layers(rows: Sequence[NetworkRow]) -> Counter[tuple[str, str]]:
    return Counter(kind for row in rows for kind in (*row.native.items(), *row.composed.items()))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
