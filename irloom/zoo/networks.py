"""Every architecture as the networks of a target: whole, with ops between networks, or not at all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from irloom.backends.core import NetworkBackend, backend
from irloom.ir.errors import PipelineError
from irloom.ir.graph import Module
from irloom.zoo.lowered import LoweredRow, lowered, table

HEAD = """# Architectures on {target}

Every causal language model of transformers {version} that traces, as networks of the library's own layers.
Written by `irloom zoo --target {target} --docs {page}`: configs are tiny, no weights are read, nothing is
built.

- *whole*: one network a step, everything in layers.
- *split*: some ops run their body between networks, on the same memory.
- *refused*: there is no program for the target.
"""


@dataclass
class NetworkRow(LoweredRow):
    """One architecture, and its ops as layers.

    ``native`` and ``composed`` map ops to the layers they are made of, ``outside`` those between the
    ``segments`` to the reason.
    """

    segments: int = 0
    native: dict[str, str] = field(default_factory=dict[str, str])
    composed: dict[str, str] = field(default_factory=dict[str, str])
    outside: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def verdict(self) -> str:
        """``whole``, ``split``, ``refused``, or ``untraced``."""
        if self.lowered is not True:
            return super().verdict
        return "split" if self.outside else "whole"

    @property
    def said(self) -> str:
        """What keeps it from being whole."""
        return self.refusal or ", ".join(self.outside)


def as_networks(target: str, name: str, columns: Sequence[str] | None = None) -> NetworkRow:
    """One architecture on a target; nothing else is asked of it, whatever ``columns`` are."""
    row, made = NetworkRow(name, target), backend(target)
    assert isinstance(made, NetworkBackend)

    def fill(m: Module) -> None:
        found = made.networks(m)
        row.segments = found.segments
        for e in found.ops:
            getattr(row, e.how).setdefault(e.op, e.reason or ", ".join(e.layers))

    return lowered(row, made, fill)


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
    lines = [HEAD.format(target=target, version=version, page=file)]
    lines += table([tuple(counts), tuple(map(str, counts.values()))])
    each = [("architecture", "", "segments", "composed of several layers", "between segments")]
    for row in rows:
        if row.traced is True:
            composed, outside = (", ".join(sorted(ops)) for ops in (row.composed, row.outside))
            each.append((row.name, row.verdict, str(row.segments), composed, outside))
    lines += ["", "## One by one", "", *table(each)]
    lines += ["", "## What is between segments, or refused, and why", ""]
    for why, names in sorted(_reasons(rows).items()):
        lines.append(f"- {why}: {', '.join(names)}")
    layers = [(op, made, str(n)) for (op, made), n in sorted(_layers(rows).items())]
    lines += ["", "## Ops in layers", "", *table([("op", "layers", "architectures"), *layers])]
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
