"""What libraries print while a model is traced stays off the screen: what matters of it is in our errors."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

LOGS = ("torch.fx", "torch._subclasses.fake_tensor", "transformers")
"""Of what fails the first prints a whole graph, the second a traceback per op; the third names kernels that
it lacks, which a trace does without.
"""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, libraries say nothing on stderr."""
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
