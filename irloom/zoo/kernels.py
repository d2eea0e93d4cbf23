"""Every architecture as launches of a target's kernels: all of it, with bodies, or not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from irloom.backends.core import KernelBackend, backend
from irloom.ir.graph import Module
from irloom.zoo.lowered import LoweredRow, lowered, table

HEAD = """# Architectures on {target}

Every causal language model of transformers {version} that traces, as launches of kernels. Written by
`irloom zoo --target {target} --docs {page}`: configs are tiny, no weights are read, nothing is built.

- *kernels*: every op is a kernel or part of one, and a step is a graph.
- *bodies*: some ops run their reference body in torch, in the same graph.
- *stepwise*: a body looks at sequences or asks the host, so steps are launched one by one.
- *refused*: there is no program for the target.
"""


@dataclass
class KernelRow(LoweredRow):
    """One architecture, and its ops as kernels: ``bodies`` maps those without one to the reason."""

    launches: int = 0
    graphs: bool = False
    bodies: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def verdict(self) -> str:
        """``kernels``, ``bodies``, ``stepwise``, ``refused``, or ``untraced``."""
        if self.lowered is not True:
            return super().verdict
        return "stepwise" if not self.graphs else "bodies" if self.bodies else "kernels"

    @property
    def said(self) -> str:
        """What keeps it from being kernels alone."""
        return self.refusal or ", ".join(self.bodies)


def as_kernels(target: str, name: str, columns: Sequence[str] | None = None) -> KernelRow:
    """One architecture on a target; nothing else is asked of it, whatever ``columns`` are."""
    row, made = KernelRow(name, target), backend(target)
    assert isinstance(made, KernelBackend)

    def fill(m: Module) -> None:
        found = made.kernels(m)
        row.launches, row.graphs, row.bodies = found.launches, found.graphs, dict(found.bodies)

    return lowered(row, made, fill)


def kernel_verdicts(rows: Sequence[KernelRow]) -> dict[str, int]:
    """How many have each verdict, of those that trace."""
    said = [row.verdict for row in rows if row.traced is True]
    return {**{v: said.count(v) for v in ("kernels", "bodies", "stepwise", "refused")}, "of": len(said)}


def kernel_page(rows: Sequence[KernelRow], target: str, version: str, file: str) -> str:
    """The page of a sweep: counts, a line per architecture, and every reason with those it holds for."""
    counts, why = kernel_verdicts(rows), defaultdict[str, list[str]](list)
    lines = [HEAD.format(target=target, version=version, page=file)]
    lines += table([tuple(counts), tuple(map(str, counts.values()))])
    there = [row for row in rows if row.traced is True]
    each = [(row.name, row.verdict, str(row.launches), ", ".join(row.bodies)) for row in there]
    lines += ["", "## One by one", "", *table([("architecture", "", "launches a layer", "bodies"), *each])]
    for row in there:
        for op, said in row.bodies.items():
            why[f"`{op}`: {said}"].append(row.name)
        if row.verdict == "refused":
            why[f"refused: {row.lowered}"].append(row.name)
    lines += ["", "## What runs its body, or is refused, and why", ""]
    lines += [f"- {said}: {', '.join(names)}" for said, names in sorted(why.items())]
    return "\n".join(lines) + "\n"
