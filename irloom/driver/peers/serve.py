"""A peer's end of the talk: a script that loads the module named on its command line, and answers.

Standard library only, and Python 3.10: it runs in the peer's interpreter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any, Protocol


class Contender(Protocol):
    """Greedy answers of exactly ``new`` tokens to each prompt; no token ends one early.

    ``about`` names the program and its version; ``vocab`` bounds the token ids. A module's ``make`` gets the
    fields of ``core.Setup``, the ``kind`` of peer and its ``settings``.
    """

    about: str
    vocab: int

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> list[list[float]]:
        """Serve all prompts, which arrive together.

        With ``stream`` the time of each token of each, by ``time.perf_counter``; without, the peer takes its
        fastest way, and says nothing.
        """
        ...

    def close(self) -> None:
        """End what was started beside: no more answers are asked for."""
        ...


def main(module: str) -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not land between answers
    made: list[Contender] = []
    for line in sys.stdin:
        what = json.loads(line)
        try:
            answer = load(module, made, what) if what.pop("do") == "load" else timed(made[0], **what)
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for contender in made:
        contender.close()


def load(module: str, made: list[Contender], what: dict[str, Any]) -> dict[str, Any]:
    """Make the contender."""
    made.append(import_module(module).make(**what))
    return {"about": made[0].about, "vocab": made[0].vocab}


def timed(contender: Contender, prompts: list[list[int]], new: int, stream: bool) -> dict[str, Any]:
    """An answer as ``load.Answer`` has it: seconds since the arrival, and joules of the device."""
    from energy import joules

    before, start = joules(), time.perf_counter()
    times = contender.answer(prompts, new, stream)
    seconds, after = time.perf_counter() - start, joules()
    spent = None if before is None or after is None else after - before
    since = [[round(t - start, 7) for t in each] for each in times]
    return {"seconds": seconds, "times": since, "joules": spent}


if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # this folder's names must hide nobody's
    main(sys.argv[1])
