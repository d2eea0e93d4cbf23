"""What each pass of the CPU pipeline is worth: the model built without it, beside the model built with all.

    python benchmarks/passes.py --json passes.json

One row leaves out one pass, or adds one that is optional. Every engine takes turns with that of the whole
pipeline, step by step on the same requests; figures are medians. README.md here says how to read the table.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, cast

import torch
from report import cell, machine, print_table, say, write_json

import irloom
from irloom.backends.core import backend
from irloom.driver import Choice, passes_of
from irloom.frontends.core import TraceOptions, frontend_of
from irloom.ir.elem import ELEMS
from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.ir.show import show
from irloom.passes import run_pipeline, spell
from irloom.runtime import Loop, SamplingParams
from irloom.runtime.core import Batch, Engine, Sampled
from irloom.runtime.sampler import sample_batch

DEMO = Path(__file__).resolve().parent.parent / ".demo" / "gemma-3-270m-q4_k_m.gguf"
OPTIONAL = ("quantize(int8)", "quantize(int4)", "fold-scales", "dedupe-weights")
"""What is not in the default pipeline; each goes where its order allows."""

HEADS = ("", "nodes", "bytes/step", "decode ms", "of all", "prefill ms", "of all", "build s", "max abs", "KL")


@dataclass
class Row:
    """A pipeline, and what was found of it; ``unmeasured`` says why there are no times.

    ``added`` is a pass that the whole pipeline gets beside its own, where its order puts it.
    """

    name: str
    steps: tuple[str, ...]
    added: str = ""
    unmeasured: str = ""
    refused: bool = False
    nodes: int = 0
    bytes: int = 0
    build: float = 0.0
    max_abs: float = 0.0
    kl: float = 0.0
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    peer: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def median(self, what: str) -> float | None:
        """Milliseconds of a step."""
        return statistics.median(self.samples[what]) if what in self.samples else None

    def ratio(self, what: str) -> float | None:
        """That over what the whole pipeline took for the same step, a moment before or after."""
        pairs = zip(self.samples.get(what, ()), self.peer.get(what, ()), strict=True)
        steps = [mine / whole for mine, whole in pairs]
        return statistics.median(steps) if steps else None

    def cells(self) -> list[str]:
        """The row of the table."""
        times = [
            text
            for what in ("decode", "prefill")
            for text in (cell(self.median(what), "{:.2f}"), cell(self.ratio(what), "{:.3f}"))
        ]
        sizes = [str(self.nodes), cell(self.bytes / 1e6, "{:.1f} MB")]
        errors = [cell(self.max_abs, "{:.1e}"), cell(self.kl, "{:.1e}")]
        return [self.name, *sizes, *times, cell(self.build, "{:.1f}"), *errors]


class Watched:
    """An engine that keeps the time, tokens and logits of each step."""

    def __init__(self, engine: Any, clock: Callable[[], float]) -> None:
        self.engine: Any = engine
        self.clock = clock
        self.steps: list[tuple[float, list[int], torch.Tensor | None]] = []
        self.keep = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step, timed without the sampler."""
        start = self.clock()
        logits = self.engine.logits(batch)
        seconds = self.clock() - start
        if len(logits) != len(batch.context):  # a row for every token: without gather-logits
            logits = logits[[int(end) - 1 for end in batch.starts[1:]]]
        self.steps.append((seconds, [int(t) for t in batch.tokens], logits.clone() if self.keep else None))
        return sample_batch(logits, batch)


class Bench:
    """The model, what it should answer, and where engines are built."""

    def __init__(self, args: argparse.Namespace, steps: tuple[str, ...], folder: Path) -> None:
        self.args, self.steps, self.folder = args, steps, folder
        options = TraceOptions(dtype=ELEMS[backend("cpu").dtype])
        front = frontend_of(args.model)
        self.traced = front.trace(args.model, options)
        self.program = ""
        self.known: dict[tuple[int, ...], torch.Tensor] = {}
        self.reference = Interpreter(self.traced, front.checkpoint(args.model, options))

    def wanted(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """The logits [T, vocab] of the program as it was traced, by the interpreter."""
        if tokens not in self.known:
            with torch.inference_mode():
                made = self.reference(torch.tensor(tokens, dtype=torch.int32), Seqs.of([len(tokens)]))
            self.known[tokens] = made[0].float()
        return self.known[tokens]

    def build(self, row: Row) -> Watched | None:
        """The engine of a row; None where there is nothing to measure, and the row says why."""
        out = self.folder / ("other" if (self.folder / "whole").exists() else "whole")  # the last one goes
        try:
            if row.added:
                choice = Choice(pipeline=self.steps, with_=(row.added,))
                row.steps = tuple(spell(p) for p in passes_of(choice))
            m, _ = run_pipeline(self.traced, row.steps)
            row.nodes, row.bytes = nodes(m), m.plan().decode(self.args.prompt).bytes
            if row.steps != self.steps and show(m, header=False) == self.program:
                row.unmeasured = "makes the same program"
                return None
            self.program = self.program or show(m, header=False)
            made = self.engine(row, out)
            self.compare(row, made)
        except (IrloomError, RuntimeError, ValueError) as error:
            row.unmeasured, row.refused = f"not possible: {str(error).splitlines()[0]}", True
            return None
        return made

    def engine(self, row: Row, out: Path) -> Watched:
        """Built, timed from behind the trace, and opened."""
        a, started = self.args, [perf_counter()]

        def report(stage: str, done: int, total: int) -> None:
            if stage == "trace":
                started[0] = perf_counter()

        irloom.compile(a.model, pipeline=row.steps, out=out, progress=report)
        row.build = perf_counter() - started[0]
        longest = a.prompt + a.new + 1
        llm = irloom.LLM(out, threads=a.threads, max_tokens=a.prompt, max_seqs=1, max_context=longest)
        return Watched(llm.engine, process_time if a.cpu_time else perf_counter)

    def compare(self, row: Row, made: Watched) -> None:
        """How far the logits of a prompt and of answered tokens are from those of the traced program."""
        made.keep = True
        serve((made,), draw(self.args, 64, "compare"), 16)
        made.keep = False
        fed = [t for _, tokens, _ in made.steps for t in tokens]
        got = torch.cat([logits for *_, logits in made.steps if logits is not None])
        want = self.wanted(tuple(fed))[-len(got) :]
        row.max_abs = (got - want).abs().max().item()
        p, q = want.log_softmax(-1), got.log_softmax(-1)
        row.kl = (p.exp() * (p - q)).sum(-1).mean().item()

    def measure(self, row: Row, made: Watched, whole: Watched) -> None:
        """Rounds of a prompt and an answer, step by step by turns with the engine of the whole pipeline."""
        serve((made, whole), draw(self.args, self.args.prompt, "warm"), self.args.new)
        for n in range(self.args.repeats):
            prompt = draw(self.args, self.args.prompt, f"{row.name} {n}")
            serve((made, whole) if n % 2 else (whole, made), prompt, self.args.new)
            for engine, samples in ((made, row.samples), (whole, row.peer)):
                first, *decodes = (1e3 * seconds for seconds, *_ in engine.steps)
                samples.setdefault("prefill", []).append(first)
                samples.setdefault("decode", []).extend(decodes)


def draw(args: argparse.Namespace, count: int, what: str) -> list[int]:
    """Random tokens, the same in every run."""
    dice = random.Random(f"{args.seed} {what}")
    return [dice.randrange(256, args.vocab) for _ in range(count)]


def serve(engines: Sequence[Watched], prompt: list[int], new: int) -> None:
    """One request to each engine, which take turns at every step; the steps are in ``Watched.steps``."""
    loops = [Loop(cast("Engine", engine)) for engine in engines]
    for engine, loop in zip(engines, loops, strict=True):
        engine.steps.clear()
        loop.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True))
    while any(loop.unfinished for loop in loops):
        for loop in loops:
            loop.step()


def nodes(m: Module) -> int:
    """Ops that a step runs, those of a layer as often as it is called."""
    return len(m.main.nodes) + sum(len(m.funcs[call.callee].nodes) for call, *_ in m.calls())


def variants(steps: tuple[str, ...], optional: Sequence[str]) -> list[Row]:
    """Every pass left out once, then each optional one added, then fusions over the ends of layers."""
    rows: list[Row] = []
    for i, name in enumerate(steps):
        nth = f" ({steps[: i + 1].count(name)})" if steps.count(name) > 1 else ""
        rows.append(Row(f"- {name}{nth}", (*steps[:i], *steps[i + 1 :])))
    rows += [Row(f"+ {text}", (), added=text) for text in optional]
    first = [name for name in steps if name in ("gather-logits", "fuse-norm")]
    if "outline" in steps and first:
        rest = [name for name in steps if name not in first]
        at = rest.index("outline")
        rows.append(Row("fuse-norm before outline", (*rest[:at], *first, *rest[at:])))
    return rows


def stairs(steps: tuple[str, ...], rows: Sequence[Row]) -> list[Row]:
    """From the passes that cannot be left out to all of them, one more at a time."""
    needed = [row.refused for row in rows[: len(steps)]]
    found = [Row("only what is needed", tuple(s for s, n in zip(steps, needed, strict=True) if n))]
    for i, name in enumerate(steps):
        if not needed[i]:
            kept = (s for j, s in enumerate(steps) if needed[j] or j <= i)
            found.append(Row(f"... and {name}", tuple(kept)))
    return found[:-1]  # the last one is the whole pipeline


def run(bench: Bench, rows: Sequence[Row], whole: Watched) -> None:
    """Build and measure each row; an engine is dropped before the next is built."""
    for row in rows:
        made = bench.build(row)
        if made is not None:
            bench.measure(row, made, whole)
        say(f"  {row.name}: {row.unmeasured or cell(row.ratio('decode'), '{:.3f} of all')}")


def main() -> None:
    args = arguments()
    steps = tuple(spell(p) for p in passes_of(Choice(pipeline=args.pipeline)))
    torch.set_num_threads(args.threads)
    clock = "its own CPU time" if args.cpu_time else "wall time"
    say(f"{args.model.name}, {args.threads} threads, {clock}, load average {machine()['load']:.1f} before")
    with tempfile.TemporaryDirectory(prefix="irloom-passes-") as folder:
        bench, all_ = Bench(args, steps, Path(folder)), Row("all", steps)
        whole, twin = bench.build(all_), bench.build(all_)
        if whole is None or twin is None:
            raise SystemExit(f"the pipeline makes no engine: {all_.unmeasured}")
        bench.measure(all_, twin, whole)
        rows = [r for r in variants(steps, args.add or OPTIONAL) if not args.only or args.only in r.name]
        run(bench, rows, whole)
        ladder = stairs(steps, rows) if args.cumulative and not args.only else []
        run(bench, ladder, whole)
    say("")
    for part in ([all_, *rows], ladder):
        if part:
            print_table([HEADS, *(row.cells() for row in part if not row.unmeasured)])
    for row in rows:
        if row.unmeasured:
            say(f"{row.name}: {row.unmeasured}")
    figures = [{**vars(row), "steps": list(row.steps)} for row in (all_, *rows, *ladder)]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    write_json(args.json, {"machine": machine(), "settings": settings, "rows": figures})


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    p.add_argument("--model", type=Path, default=DEMO, help="default: the demo model of `make setup`")
    p.add_argument("--threads", type=int, default=cores, help="default: all cores")
    p.add_argument(
        "--cpu-time", action="store_true", help="count this process's own time, with one thread: under load"
    )
    p.add_argument("--repeats", type=int, default=8, help="rounds of a prompt and an answer")
    p.add_argument("--prompt", type=int, default=256, help="tokens of the prompt, one step")
    p.add_argument("--new", type=int, default=24, help="tokens answered, one step each")
    p.add_argument("--pipeline", metavar="TEXT", help="what passes are left out of; default: the target's")
    p.add_argument("--add", action="append", metavar="PASS", help=f"optional passes; default: {OPTIONAL}")
    p.add_argument("--only", metavar="NAME", help="rows whose name holds this")
    p.add_argument("--cumulative", action="store_true", help="also add one pass at a time")
    p.add_argument("--vocab", type=int, default=32000, help="tokens are drawn below this")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    args.threads = 1 if args.cpu_time else args.threads
    if not args.model.exists():
        p.error(f"{args.model}: not there; `make setup` makes the demo model")
    return args


if __name__ == "__main__":
    main()
