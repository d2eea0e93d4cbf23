"""What every target's row of an architecture has: whether it traces, and whether it lowers.

No weights are made and no library is needed: a tiny config is traced, rewritten and lowered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

from irloom.backends.core import Backend
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.trace import trace_config
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Module
from irloom.passes import run_pipeline
from irloom.zoo.core import Outcome
from irloom.zoo.examine import reason
from irloom.zoo.models import tiny
from irloom.zoo.table import line


@dataclass
class LoweredRow:
    """One architecture on a target; ``traced`` and ``lowered`` are true or say why not."""

    name: str
    target: str = ""
    traced: Outcome = False
    lowered: Outcome = False
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``refused`` or ``untraced``; a target says more of what lowers."""
        return "refused" if self.traced is True else "untraced"

    @property
    def refusal(self) -> str | None:
        """Why it is not there; None where it is."""
        if self.lowered is True:
            return None
        return str(self.lowered if self.traced is True else self.traced)

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


R = TypeVar("R", bound=LoweredRow)


def lowered(row: R, made: Backend, fill: Callable[[Module], None]) -> R:
    """``row``, with what ``fill`` puts there of a module that is traced and has gone through the pipeline."""
    start = time.perf_counter()
    try:
        m = trace_config(tiny(row.name), TraceOptions(dtype=ELEMS[made.dtype], check=False))
        row.traced = True
        fill(run_pipeline(m, made.pipeline)[0])
        row.lowered = True
    except Exception as error:  # whatever goes wrong is the reason
        setattr(row, "traced" if row.traced is False else "lowered", reason(error))
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown; the first row is its head."""
    head, *body = rows
    return [line(head), line(["---"] * len(head)), *map(line, body)]
