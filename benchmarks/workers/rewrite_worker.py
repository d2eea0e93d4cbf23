"""Trace one config and run the CPU pipeline on it, flat and outlined; prints figures as one JSON object.

rewrite_worker.py CONFIG-CLASS SETTINGS-AS-JSON REPEATS
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any


def main(cls: str, settings: str, repeats: int) -> dict[str, Any]:
    """Seconds of CPU of each pass and of the whole run, the median of ``repeats``."""
    import transformers

    import irloom
    from irloom.backends.core import backend
    from irloom.passes import parse_pipeline, run_pipeline, spell

    config = getattr(transformers, cls)(**json.loads(settings))
    config.dtype = "bfloat16"
    traced = irloom.trace(config)
    steps = [spell(p) for p in parse_pipeline(list(backend("cpu").pipeline))]
    outlined, _ = run_pipeline(traced, steps[: steps.index("outline") + 1])
    steps.remove("outline")

    def measured(m: irloom.Module) -> dict[str, Any]:
        rows, totals = [], []
        for _ in range(repeats):
            start = time.process_time()
            _, record = run_pipeline(m, steps)
            totals.append(time.process_time() - start)
            rows.append([s.seconds for s in record.steps])
        return {
            "nodes": sum(len(f.body) for f in m.funcs.values()),
            "passes": steps,
            "seconds": [statistics.median(column) for column in zip(*rows, strict=True)],
            "total": statistics.median(totals),
        }

    return {"flat": measured(traced), "outlined": measured(outlined)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
