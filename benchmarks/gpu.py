"""irloom on one GPU against vLLM and transformers: same card, same run, same weights, same requests.

    python benchmarks/gpu.py --models /data/models            # every row; an hour with all peers
    python benchmarks/gpu.py --models /data/models --row 8b-bf16-alone --row ttft-bf16 --without-peers

Rows of one model are served by one engine, and by one process of each peer, one after the other; each has the
whole card. Weights are random, of the real shape, and written once to `--models`. Figures go to
`benchmarks/results/cuda-DATE.json` as they are measured: what was done before `--seconds` are over stays, and
a later call on that day replaces the rows that it runs. `benchmarks/render.py` makes the page of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kept import Kept
from report import say
from shapes import SHAPES, checkpoint
from works import VLLM_INT4, WORKS, Work, by_model

if TYPE_CHECKING:
    from irloom.driver.load import Answer, Contender, Load
    from irloom.driver.peers import Peer
    from irloom.ir.device import Device
    from irloom.ir.graph import Module

RESULTS = Path(__file__).resolve().parent / "results"
OPEN = Path(__file__).resolve().parent / "workers" / "open_worker.py"
SHORT = 16
"""Tokens of answers that warm up."""


class TimeUp(Exception):
    """``--seconds`` are over."""


def main(argv: Sequence[str] | None = None) -> None:
    from irloom.driver import measured

    args = arguments(argv)
    args.end = time.monotonic() + args.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # peers are ended on the way out
    card = None if args.only_peers else measured(args.target)
    kept = Kept.today(args.results, card)
    models = [Model(names, kept, card, args) for names in by_model(args.row or WORKS)]
    try:
        if not args.only_peers:  # irloom first: a peer that takes too long leaves its figures there
            measure(models, args.builds)
        for model in models:
            model.measure_peers()
    except TimeUp:
        say(f"{args.seconds:.0f} s are over")
    say(f"figures: {kept.path}")


def measure(models: Sequence[Model], builds: int) -> None:
    """Build all engines, ``builds`` at a time; then each serves its rows."""
    alone, rest = [m for m in models if m.timed], [m for m in models if not m.timed]
    done = [model.build() for model in alone]
    with ThreadPoolExecutor(builds) as pool:
        done += pool.map(Model.build, rest)
    for model, built in zip([*alone, *rest], done, strict=True):
        if built:
            model.measure()


class Model:
    """The rows of one model: its checkpoint, its engine, and whoever serves them."""

    def __init__(
        self, names: Sequence[str], kept: Kept, card: Device | None, args: argparse.Namespace
    ) -> None:
        self.works = {name: WORKS[name] for name in names}
        first = self.works[names[0]]
        self.shape, self.passes = first.shape, first.passes
        self.kept, self.card, self.args = kept, card, args
        self.module: Module | None = None
        self.path = checkpoint(self.shape, args.models)
        self.engine = args.models / f"{self.shape}-{args.target}-{len(self.passes)}-engine"

        for name, work in self.works.items():
            if not args.only_peers:
                kept.begin(name, work)

    @property
    def timed(self) -> bool:
        """Whether its build is a row: nothing else runs then."""
        return any(work.figure == "build" for work in self.works.values())

    @property
    def served(self) -> dict[str, Work]:
        """The rows that are served."""
        return {name: work for name, work in self.works.items() if work.served}

    def build(self) -> bool:
        """Build the engine, and again where that is a row; False where that fails."""
        shutil.rmtree(self.engine, ignore_errors=True)
        rows = [name for name, work in self.works.items() if work.figure == "build"]
        first = [name for name in rows if not name.startswith("rebuild")]
        if reason := self._built(first):
            for name in self.works:
                self.kept.fail(name, reason)
        elif again := [name for name in rows if name not in first]:
            self._built(again)
        return reason is None

    def measure(self) -> None:
        """Irloom's figures."""
        self._opened()
        if self.served:
            self._serve("irloom", self.served, self.engine)

    def measure_peers(self) -> None:
        """Those of each peer."""
        for text in dict.fromkeys(p for work in self.served.values() for p in self._peers(work)):
            rows = {name: work for name, work in self.served.items() if text in self._peers(work)}
            said = vllm_int4(self.shape, self.args.models) if text == VLLM_INT4 else text
            self._serve(said, rows, self.path)

    def _peers(self, work: Work) -> tuple[str, ...]:
        texts = () if self.args.without_peers else self.args.peer or work.peers
        return tuple(text for text in texts if text.partition("(")[0] not in self.args.without)

    def _built(self, rows: Sequence[str]) -> str | None:
        """Build; ``rows`` are the seconds of the whole command. Why it failed, if it did."""
        command = [sys.executable, "-m", "irloom", "compile", str(self.path), "-o", str(self.engine)]
        command += ["--target", self.args.target, *(w for text in self.passes for w in ("--with", text))]
        start = time.perf_counter()
        reason = self._command(command)[1]
        seconds = time.perf_counter() - start
        say(f"  {self.engine.name}: {reason or f'built in {seconds:.1f} s'}")
        for name in rows if reason is None else ():
            self.kept.own(name, seconds)
        return reason

    def _opened(self) -> None:
        """Rows of opening: the second of two runs, which finds all files in the page cache."""
        command = [sys.executable, str(OPEN), str(self.engine), self.args.target]
        for name in [name for name, work in self.works.items() if work.figure == "open"]:
            self._command(command)
            said, reason = self._command(command)
            if reason is None:
                self.kept.own(name, json.loads(said)["seconds"])
            else:
                self.kept.fail(name, reason)

    def _command(self, command: list[str]) -> tuple[str, str | None]:
        """What a command prints, and why it failed: None if it did not."""
        try:
            done = subprocess.run(command, text=True, capture_output=True, timeout=self._left(), check=False)
        except subprocess.TimeoutExpired:
            return "", "took too long"
        return done.stdout, last_words(done.stderr) if done.returncode else None

    def _serve(self, text: str, works: dict[str, Work], model: Path) -> None:
        """Let irloom or a peer serve rows; each figure is kept as it comes."""
        from irloom.driver.peers import PeerError, PeerProcess, Setup, peer

        one, loads = peer(text), [load(work) for work in works.values()]
        longest, seqs = max(x.longest for x in loads), max(x.at_once for x in loads)
        device, dtype = {"cuda": ("cuda", "bfloat16")}.get(self.args.target, ("cpu", "float32"))
        setup, todo = Setup(str(model.resolve()), device, dtype, longest, seqs), dict(works)
        say(f"  {text}")
        try:
            with PeerProcess(one, setup, self._python(one), self._left()) as process:
                while todo:
                    name, work = next(iter(todo.items()))
                    process.limit = self._left()
                    found = found_by(process, work, self.args.repeats, self.args.warm)
                    self._keep(name, text, process.about, found)
                    del todo[name]
        except PeerError as error:
            for name in todo:
                self.kept.leave_out(name, text, error.message)

    def _keep(self, name: str, text: str, about: str, found: dict[str, Any]) -> None:
        value = self.works[name].of(found)
        if text == "irloom":
            found["bounds"] = self._bounds(self.works[name])
            self.kept.own(name, value, found)
        else:
            self.kept.peer(name, about, value, found, text)
        unit = self.works[name].unit
        say(f"    {name}: {value:,.1f} {unit}, goal {self.works[name].goal:,}; {self._left():.0f} s are left")

    def _bounds(self, work: Work) -> dict[str, Any] | None:
        """What the card could reach at most with this engine."""
        from irloom.driver.roofline import bounds
        from irloom.ir.parse import parse

        self.module = self.module or parse((self.engine / "module.irloom").read_text())
        return self.card and asdict(bounds(self.module, self.card, load(work)))

    def _python(self, one: Peer) -> str | None:
        return None if one.name == "irloom" else self.args.peer_python

    def _left(self) -> float:
        left = self.args.end - time.monotonic()
        if left < 1:
            raise TimeUp
        return min(left, self.args.limit)


def load(work: Work) -> Load:
    """The requests of a row."""
    from irloom.driver import Load

    return Load(*work.requests)


def found_by(contender: Contender, work: Work, repeats: int, warm: int) -> dict[str, Any]:
    """A row as a contender serves it: medians, percentiles of times, and every sample.

    A request alone is streamed, and sent ``repeats`` times. Many together take the fastest way; when each
    token came is seen in one run more, where there are several. Before, at most ``warm`` runs are short.
    """
    from irloom.driver.measure import Served

    asked, (requests, _, new) = load(work), work.requests
    runs = repeats if requests == 1 else min(work.runs, repeats)

    def answer(run: int, stream: bool, tokens: int = new) -> Answer:
        return contender.answer(asked.prompts(requests, contender.vocab, run), tokens, stream)

    for run in range(min(work.warm, warm)):
        answer(-1 - run, requests == 1, min(SHORT, new))
    answers = [answer(run, requests == 1) for run in range(runs)]
    streamed = answers if requests == 1 else [answer(runs, True)] if runs > 1 else []
    rates = [(new - 1) / (t[-1] - t[0]) for one in streamed for t in one.times] if requests == 1 else []
    joules = [one.joules / (requests * new) for one in answers if one.joules is not None]
    return {
        "output_per_s": statistics.median([requests * new / one.seconds for one in answers]),
        "seconds": [one.seconds for one in answers],
        "decode_per_s": statistics.median(rates) if rates else None,
        "decode_samples": rates,
        "served": asdict(Served.of(streamed)) if streamed else None,
        "joules_per_token": statistics.median(joules) if joules else None,
    }


def last_words(said: str) -> str:
    """The error that a command ended with: irloom's line of it, or else the last line but hints."""
    lines = [line for line in said.strip().splitlines() if not line.startswith("hint: ")]
    errors = [
        line.removeprefix("error: ") for line in lines if line.startswith(("error: ", "internal error: "))
    ]
    return (errors or lines or ["it said nothing"])[-1]


def vllm_int4(shape: str, models: Path) -> str:
    """VLLM reads int4 from a file only: a config that says GPTQ, for which it makes up weights itself."""
    folder = models / f"{shape}-gptq"
    folder.mkdir(parents=True, exist_ok=True)
    scheme = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    config = SHAPES[shape] | {"quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return f"vllm(model={folder}, load_format=dummy)"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=Path, required=True, help="where checkpoints are, or are to be written")
    p.add_argument("--row", action="append", choices=WORKS, help="may be given again; default: all")
    p.add_argument("--results", type=Path, default=RESULTS, help="folder of the file of results")
    p.add_argument("--repeats", type=int, default=5, help="of a request alone; many together have their own")
    p.add_argument("--warm", type=int, default=2, help="short runs before what is measured, at most")
    p.add_argument("--target", default="cuda")
    p.add_argument("--peer", action="append", help="instead of the row's own, as `irloom bench` takes them")
    p.add_argument("--peer-python", help="an interpreter that has the peers")
    p.add_argument("--limit", type=float, default=1800, help="seconds that loading or one answer may take")
    p.add_argument("--seconds", type=float, default=1e6, help="when they are over, nothing more is begun")
    p.add_argument("--builds", type=int, default=1, help="engines that are built at a time")
    p.add_argument("--only-peers", action="store_true", help="beside what irloom reached earlier that day")
    p.add_argument("--without", action="append", default=[], metavar="PEER", help="may be given again")
    p.add_argument("--without-peers", action="store_true")
    return p.parse_args(argv)


if __name__ == "__main__":
    main()
