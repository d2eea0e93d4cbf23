"""Every architecture as launches of a target's kernels: all of it, with bodies, or not at all.

No weights are made and no GPU is needed: a tiny config is traced, rewritten and lowered.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from irloom.backends.core import KernelBackend, backend
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.trace import trace_config
from irloom.ir.elem import ELEMS
from irloom.passes import run_pipeline
from irloom.zoo.core import Outcome
from irloom.zoo.examine import reason
from irloom.zoo.models import tiny

HEAD = """# Architectures on {target}

Every causal language model of transformers {version} that traces, as launches of kernels. Written by
`irloom zoo --target {target} --docs {page}`: configs are tiny, no weights are read, nothing is built.

- *kernels*: every op is a kernel or part of one, and a step is a graph.
- *bodies*: some ops run their reference body in torch, in the same graph.
- *stepwise*: a body looks at sequences or asks the host, so steps are launched one by one.
- *refused*: there is no program for the target.
"""


@dataclass
class KernelRow:
    """One architecture: whether it traces, and its ops as kernels.

    ``traced`` and ``lowered`` are true or say why not; ``bodies`` maps ops without a kernel to the reason.
    """

    name: str
    target: str = ""
    traced: Outcome = False
    lowered: Outcome = False
    launches: int = 0
    graphs: bool = False
    bodies: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``kernels``, ``bodies``, ``stepwise``, ``refused``, or ``untraced``."""
        if self.traced is not True:
            return "untraced"
        if self.lowered is not True:
            return "refused"
        return "stepwise" if not self.graphs else "bodies" if self.bodies else "kernels"

    @property
    def said(self) -> str:
        """What keeps it from being kernels alone."""
        if self.lowered is not True:
            return str(self.lowered if self.traced is True else self.traced)
        return ", ".join(self.bodies)

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


def as_kernels(target: str, name: str, columns: Sequence[str] | None = None) -> KernelRow:
    """One architecture on a target; nothing else is asked of it, whatever ``columns`` are."""
    row, start = KernelRow(name, target), time.perf_counter()
    made = backend(target)
    assert isinstance(made, KernelBackend)
    try:
        m = trace_config(tiny(name), TraceOptions(dtype=ELEMS[made.dtype], check=False))
        row.traced = True
        m, _ = run_pipeline(m, made.pipeline)
        found = made.kernels(m)
    except Exception as error:  # whatever goes wrong is the reason
        setattr(row, "traced" if row.traced is False else "lowered", reason(error))
    else:
        row.lowered, row.launches, row.graphs = True, found.launches, found.graphs
        row.bodies = dict(found.bodies)
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def kernel_verdicts(rows: Sequence[KernelRow]) -> dict[str, int]:
    """How many have each verdict, of those that trace."""
    said = [row.verdict for row in rows if row.traced is True]
    return {**{v: said.count(v) for v in ("kernels", "bodies", "stepwise", "refused")}, "of": len(said)}


def kernel_page(rows: Sequence[KernelRow], target: str, version: str, file: str) -> str:
    """The page of a sweep: counts, a line per architecture, and every reason with those it holds for."""
    counts, why = kernel_verdicts(rows), defaultdict[str, list[str]](list)
    lines = [HEAD.format(target=target, version=version, page=file)]
    lines += _table([tuple(counts), tuple(map(str, counts.values()))])
    there = [row for row in rows if row.traced is True]
    each = [(row.name, row.verdict, str(row.launches), ", ".join(row.bodies)) for row in there]
    lines += ["", "## One by one", "", *_table([("architecture", "", "launches a layer", "bodies"), *each])]
    for row in there:
        for op, said in row.bodies.items():
            why[f"`{op}`: {said}"].append(row.name)
        if row.verdict == "refused":
            why[f"refused: {row.lowered}"].append(row.name)
    lines += ["", "## What runs its body, or is refused, and why", ""]
    lines += [f"- {said}: {', '.join(names)}" for said, names in sorted(why.items())]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return [head, f"|{' --- |' * len(rows[0])}", *body]
