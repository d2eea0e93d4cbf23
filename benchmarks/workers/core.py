"""The benchmark's side of the talk with a worker process. Standard library only."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class WorkerError(Exception):
    """A worker died, was too slow, or said no; the message is the reason to print."""


class Worker:
    """A process that answers one JSON object with another. ``script`` is a file of this folder.

    It is killed when an answer takes longer than its limit: nothing else stops a compiler that runs on.
    """

    def __init__(self, script: str, python: str = sys.executable, threads: int | None = None) -> None:
        env = dict(os.environ)
        if threads is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        self._log = Path(tempfile.mkstemp(prefix="irloom-worker-")[1])
        pipe = subprocess.PIPE
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / script)], stdin=pipe, stdout=pipe, stderr=log, text=True, env=env
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, do: str, limit: float = 1800.0, **what: Any) -> dict[str, Any]:
        """The answer to one command; ``WorkerError`` after ``limit`` seconds or where there is none."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **what}), file=self._process.stdin, flush=True)
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self.close()
            raise WorkerError(f"{do} took more than {limit:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerError(f"ended with status {code}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(str(answer["error"]).strip().splitlines()[0][:300])
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._log.unlink(missing_ok=True)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _last_words(self) -> str:
        said = self._log.read_text(errors="replace").strip().splitlines()
        return said[-1][:300] if said else "it said nothing"


def imports(python: str, module: str) -> bool:
    """Whether an interpreter has a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
