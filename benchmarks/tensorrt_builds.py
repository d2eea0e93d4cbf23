"""Every architecture as TensorRT engines, built by the library that is installed: seconds and bytes of plans.

    python benchmarks/tensorrt_builds.py --json tensorrt.json
    python benchmarks/tensorrt_builds.py llama gemma3_text --size wide

Each program is built as one network, and cut at its layers into distinct ones; then again, from the cache of
plans. Plans hold no weights, so tiny models and large ones differ in their dims alone. Nothing is run, and
TensorRT for RTX builds without a GPU. README.md here says more.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from report import cell, machine, print_table, say, write_json

from irloom.backends.core import quiet
from irloom.backends.machine import cores
from irloom.backends.tensorrt.backend import BACKEND, builder_here, recipes
from irloom.backends.tensorrt.library import load
from irloom.backends.tensorrt.lower import Cut, lower
from irloom.backends.tensorrt.plan_cache import plans
from irloom.backends.tensorrt.program import Program
from irloom.driver import Choice, passes_of
from irloom.frontends.hf.capture import capture
from irloom.frontends.hf.importer import import_graph
from irloom.frontends.hf.skeleton import skeleton
from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.passes import run_pipeline
from irloom.zoo.models import default, full_size, names, tiny


@dataclass(frozen=True)
class Built:
    """Plans of one program: networks, distinct ones, seconds from an empty cache (on the clock, and of all
    threads of the builders) and again, bytes.
    """

    networks: int
    distinct: int
    seconds: float
    cpu_seconds: float
    again: float
    bytes: int


@dataclass(frozen=True)
class Row:
    """An architecture: ops that stay between networks, and what was built, or why not."""

    name: str
    outside: tuple[str, ...] = ()
    whole: Built | None = None
    layer: Built | None = None
    reason: str = ""


def main() -> None:
    args = arguments()
    library = load()
    say(f"{library}, {cores()} plans at once, load average {machine()['load']:.1f}\n")
    rows: list[Row] = []
    for name in args.names or names():
        rows.append(examine(name, args))
        say("  ".join(cells(rows[-1])))
    say("")
    print_table([HEADER, *(cells(r) for r in rows)])
    summarize(rows)
    figures = {"machine": machine(), "library": str(library), "rows": [asdict(r) for r in rows]}
    write_json(args.json, figures)


def examine(name: str, args: argparse.Namespace) -> Row:
    """Trace an architecture and build it both ways."""
    outside: tuple[str, ...] = ()
    try:
        with limited(args.limit), tempfile.TemporaryDirectory(dir=args.tmp) as folder:
            m = program(CONFIGS[args.size](name))
            outside = tuple(BACKEND.fallbacks(m))
            whole, layer = (built(lower(m, cut), Path(folder) / cut) for cut in CUTS)
            return Row(name, outside, whole, layer)
    except TimeoutError:
        return Row(name, outside, reason=f"gave up after {args.limit} seconds")
    except Exception as error:  # one architecture must not stop the others
        said = error.message if isinstance(error, IrloomError) else f"{type(error).__name__}: {error}"
        return Row(name, outside, reason=said.splitlines()[0] if said else type(error).__name__)


CUTS: tuple[Cut, ...] = ("whole", "layer")
CONFIGS: dict[str, Callable[[str], Any]] = {"tiny": tiny, "wide": full_size, "real": default}
"""Models of an architecture: tiny; as wide as its default config but a few layers deep; that config."""


def program(config: Any) -> Module:
    """A config's program in bf16 after the target's own passes; no weight is made."""
    model = skeleton(config, torch.bfloat16)
    traced = import_graph(capture(model), model, config.model_type)
    return run_pipeline(traced, passes_of(Choice("tensorrt")))[0]


def built(p: Program, cache: Path) -> Built:
    """The plans of a program, built into an empty cache and then taken from it."""
    wanted = [recipe for recipe, _ in recipes(p, builder_here(load()))]
    start = perf_counter()
    made = plans(wanted, quiet, cores(), cache)
    between = perf_counter()
    plans(wanted, quiet, cores(), cache)
    size = sum(one.bytes for one in made.values())
    cpu = sum(one.cpu_seconds for one in made.values())
    return Built(len(wanted), len(made), between - start, cpu, perf_counter() - between, size)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in what takes longer."""

    def late(signum: int, frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


WAY = ["s", "CPU s", "MB", "again s"]
HEADER = ["", "whole", *WAY, "cut", "plans", *WAY, "note"]


def cells(r: Row) -> list[str]:
    """A row of the table."""
    if r.whole is None or r.layer is None:
        return [r.name, *["-"] * (len(HEADER) - 2), r.reason[:100]]
    whole, layer = (
        (cell(b.seconds), cell(b.cpu_seconds, "{:.2f}"), cell(b.bytes / 1e6), cell(b.again, "{:.3f}"))
        for b in (r.whole, r.layer)
    )
    note = f"outside: {', '.join(r.outside)}" if r.outside else ""
    return [r.name, str(r.whole.networks), *whole, str(r.layer.networks), str(r.layer.distinct), *layer, note]


def summarize(rows: list[Row]) -> None:
    """How many are built, and the ratio of the two ways."""
    ratios = [r.whole.cpu_seconds / r.layer.cpu_seconds for r in rows if r.whole and r.layer]
    unsplit = sum(r.whole is not None and not r.outside for r in rows)
    say(f"{len(ratios)} of {len(rows)} are built, {unsplit} of them without an op between networks")
    if ratios:
        less = sum(x > 1 for x in ratios)
        say(f"cut at layers, {less} of {len(ratios)} take less CPU time; median ratio {median(ratios):.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="architectures; all that transformers knows by default")
    parser.add_argument(
        "--size", choices=CONFIGS, default="tiny", help="tiny; wide: real dims, few layers; real: all layers"
    )
    parser.add_argument("--limit", type=int, default=300, help="seconds after which one is given up")
    parser.add_argument("--tmp", type=Path, help="where caches of plans are made")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
