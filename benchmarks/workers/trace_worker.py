"""Trace one config without weights and run the pipeline; prints figures as one JSON object.

trace_worker.py CONFIG-CLASS SETTINGS-AS-JSON
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

STARTED = time.perf_counter()


def main(cls: str, settings: str) -> dict[str, Any]:
    """Seconds of each part, by the clock and of CPU; nodes and lines after trace, outline and the end."""
    import transformers

    import irloom
    from irloom.backends.core import backend
    from irloom.passes import parse_pipeline, run_pipeline, spell

    config = getattr(transformers, cls)(**json.loads(settings))
    config.dtype = "bfloat16"
    times = {"import": time.perf_counter() - STARTED}

    def timed(name: str, run: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        made = run()
        times[name], times[f"{name} (CPU)"] = time.perf_counter() - start, time.process_time() - used
        return made

    traced = timed("trace", lambda: irloom.trace(config))
    timed("trace again", lambda: irloom.trace(config))
    steps = [spell(p) for p in parse_pipeline(list(backend("cpu").pipeline))]
    cut = [s.partition("(")[0] for s in steps].index("outline") + 1
    outlined, _ = timed("outline", lambda: run_pipeline(traced, steps[:cut]))
    final, _ = timed("rest", lambda: run_pipeline(outlined, steps[cut:]))
    programs = {"trace": traced, "outline": outlined, "end": final}
    return {
        "seconds": times,
        "nodes": {name: sum(len(f.nodes) for f in m.funcs.values()) for name, m in programs.items()},
        "lines": {name: len(irloom.show(m).splitlines()) for name, m in programs.items()},
        "functions": len(outlined.funcs),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
