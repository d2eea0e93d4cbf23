"""What the benchmarks print: aligned tables, and the same figures as a JSON file. Standard library only."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, all but the first to the right; a rule below the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if n == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))
    print(flush=True)


def say(text: str) -> None:
    """A line about what is going on, at once."""
    print(text, flush=True)


def cell(value: float | None, form: str = "{:,.1f}") -> str:
    """A number as text; a dash where there is none."""
    return "-" if value is None else form.format(value)


def machine() -> dict[str, Any]:
    """Where and under what load a benchmark ran."""
    return {"platform": platform.platform(), "python": platform.python_version(), "load": os.getloadavg()[0]}


def write_json(path: Path | None, figures: Any) -> None:
    """Write the figures beside what was printed, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        say(f"figures: {path}")
