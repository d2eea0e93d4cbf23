"""From nothing to the first token: ``open_worker.py MODEL TARGET [PASS ...]`` prints the seconds as JSON.

All of a process but the start of Python itself is counted: imports, finding the engine in the cache, opening
it, 128 prompt tokens. Run it once before, so that the engine is built and its files are in the page cache.
"""

from __future__ import annotations

import json
import sys
import time


def main(model: str, target: str, *passes: str) -> None:
    start = time.perf_counter()
    from irloom import LLM
    from irloom.driver import Choice, Own, passes_of

    llm = LLM(model, target, passes_of(Choice(target, None, passes)) if passes else None)
    opened = time.perf_counter() - start
    Own(llm).answer([[1] * 128], 1, stream=False)
    found = {"seconds": time.perf_counter() - start, "opened": opened}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
