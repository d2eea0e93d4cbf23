"""What torch prints of a trace that fails stays off the screen: what matters of it is in our error."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

LOGS = ("torch.fx", "torch._subclasses.fake_tensor")
"""The first prints a whole graph, the second a traceback per op."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, torch says nothing about failures on stderr."""
    logs = [logging.getLogger(name) for name in LOGS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
