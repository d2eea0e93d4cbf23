"""Who takes part in ``cpu.py``, and how each is started and warmed up. Standard library only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from report import say
from workers.core import Worker, WorkerError, imports
from workload import TOGETHER, Load, Request


@dataclass
class Contender:
    """One column of the benchmark. ``out`` is the reason why it takes no further part."""

    name: str
    script: str
    options: dict[str, Any]
    python: str = sys.executable
    limit: float = 1800.0
    warm_limit: float = 1800.0
    facts: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[list[list[int]]]] = field(default_factory=dict)
    out: str | None = None
    worker: Worker | None = None

    def start(self, threads: int, load: Load) -> None:
        """Load the model and answer requests of each kind, unmeasured."""
        say(f"  {self.name}: loading")
        try:
            self.worker = Worker(self.script, self.python, threads)
            self.facts = self.worker.ask("load", self.limit, threads=threads, **self.options)
            say(f"  {self.name}: warming up")
            if self.script == "llama_worker.py":
                self.facts["chosen"] = self._ask("choose", load.requests(TOGETHER, -1), self.warm_limit)
            for requests in load.warm():
                self._ask("answer", requests, self.warm_limit)
        except WorkerError as error:
            self.drop(str(error))

    def answer(self, requests: list[Request]) -> dict[str, Any] | None:
        """Serve requests that arrive together; None from a contender that is out, or now drops out."""
        if self.out is not None:
            return None
        try:
            return self._ask("answer", requests, self.limit)
        except WorkerError as error:
            self.drop(str(error))
            return None

    def drop(self, reason: str) -> None:
        """Go on without this contender."""
        self.out = reason
        say(f"  {self.name}: SKIPPED: {reason}")
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()

    def _ask(self, do: str, requests: list[Request], limit: float) -> dict[str, Any]:
        assert self.worker is not None
        return self.worker.ask(do, limit, prompts=[r.prompt for r in requests], new=[r.new for r in requests])


def contenders(args: Any, longest: int) -> Iterator[Contender]:
    """Everyone who was asked for, in the order of the table; those that cannot be are out from the start."""
    model = str(args.gguf)
    for name, pipeline in args.pipeline.items():
        options = {"model": model, "pipeline": pipeline, "longest": longest, "requests": args.requests}
        yield Contender(
            f"irloom {name}", "irloom_worker.py", options, limit=args.limit, warm_limit=args.limit
        )
    if "transformers" not in args.without:
        for dtype in args.dtype:
            for compiled in (False, True):
                if compiled and "compile" in args.without:
                    continue
                kind = "static+compile" if compiled else "eager"
                options = {"model": model, "dtype": dtype, "compiled": compiled, "longest": longest}
                limit = args.compile_limit if compiled else args.limit
                name = f"transformers {kind}" + (f" {dtype}" if len(args.dtype) > 1 else "")
                yield Contender(name, "transformers_worker.py", options, limit=args.limit, warm_limit=limit)
    if "llama" not in args.without:
        options = {"model": model, "longest": longest, "requests": args.requests}
        python = args.llama_python or sys.executable
        llama = Contender("llama.cpp", "llama_worker.py", options, python, args.limit, args.limit)
        if not imports(python, "llama_cpp"):
            llama.out = (
                "llama-cpp-python is not installed here: pip install '.[bench]', or --llama-python PATH"
            )
            say(f"  {llama.name}: SKIPPED: {llama.out}")
        yield llama
