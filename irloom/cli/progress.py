"""Progress bars on stderr, one per stage; nothing at all when stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
"""``report(stage, done, total)``: how far a stage is, in what it counts; ``total`` is 0 while unknown. What
follows a colon says what the stage is at now: ``plan 1 of 3: Timing tactics``.
"""


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Give a ``Report`` that draws one bar per stage, in the order the stages first report."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, TextColumn("{task.fields[at]}"), console=Console(stderr=True)) as bars:
        stages: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            stage, _, at = stage.partition(": ")
            if stage not in stages:
                stages[stage] = bars.add_task(stage, at=at)
            bars.update(stages[stage], completed=done, total=total or None, at=at)

        yield report
