"""How long a build takes, cold and from the cache, and a command to start; how much memory a build needs.

    python benchmarks/build.py --json build.json

Every figure is of fresh processes. Cold means an empty cache directory of irloom's (traces, kernels,
tokenizers, engines), not an empty disk cache. README.md here says how to read the tables.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from processes import ProcessError, wall, worker
from report import cell, machine, print_table, say, write_json
from synthetic import write_checkpoint

DEMO = Path(__file__).resolve().parent.parent / ".demo" / "gemma-3-270m-q4_k_m.gguf"
PARTS = ("trace", "passes", "tokenizer", "lower", "kernels", "weights", "open")
GB = 1e9


def main() -> None:
    args = arguments()
    say(f"load average {machine()['load']:.1f}; medians of {args.repeats} builds, of {args.starts} starts\n")
    figures: dict[str, Any] = {"machine": machine()}
    for name, part in (("starts", starts), ("build", build), ("memory", memory)):
        if name not in args.without:
            try:
                figures[name] = part(args)
            except (ProcessError, OSError) as error:
                say(f"{name}: FAILED: {error}\n")
                figures[name] = {"failed": str(error)}
    write_json(args.json, figures)


def starts(args: argparse.Namespace) -> dict[str, float]:
    """``irloom --help`` and ``import irloom``, whole processes, beside an empty one."""
    command = Path(sys.executable).with_name("irloom")
    asked = {
        "irloom --help": ([str(command), "--help"], "0.5 s"),
        "import irloom": ([sys.executable, "-c", "import irloom"], "0.4 s"),
        "python, nothing else": ([sys.executable, "-c", ""], ""),
    }
    found = {name: wall(line, args.starts) for name, (line, _) in asked.items()}
    print_table(
        [["", "seconds", "goal"], *([n, cell(found[n], "{:.3f}"), goal] for n, (_, goal) in asked.items())]
    )
    return found


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Cold and warm builds, and what reading the file alone takes."""
    runs: dict[str, list[dict[str, float]]] = {
        "cold": [],
        "compile again": [],
        "LLM()": [],
        "LLM() again": [],
        "read": [],
    }
    for n in range(args.repeats):
        with tempfile.TemporaryDirectory(dir=args.tmp) as tmp:
            model, env = str(args.model), {"XDG_CACHE_HOME": f"{tmp}/cache"}
            runs["cold"].append(worker("build_worker.py", "compile", model, f"{tmp}/1", env=env).said)
            runs["compile again"].append(
                worker("build_worker.py", "compile", model, f"{tmp}/2", env=env).said
            )
            runs["LLM()"].append(worker("build_worker.py", "open", model, env=env).said)
            runs["LLM() again"].append(worker("build_worker.py", "open", model, env=env).said)
            runs["read"].append(
                worker("build_worker.py", "read", model, env={"XDG_CACHE_HOME": f"{tmp}/other"}).said
            )
        say(f"  build {n + 1} of {args.repeats} done")
    found = {name: medians(each) for name, each in runs.items()}
    show_build(found)
    return {"median": found, "samples": runs}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Key by key; a stage that a run did not have counts as 0."""
    keys: Iterable[str] = dict.fromkeys(k for r in runs for k in r)
    return {k: statistics.median(r.get(k, 0.0) for r in runs) for k in keys}


def show_build(found: dict[str, dict[str, float]]) -> None:
    """Stages of each kind of build, then the figures that have goals."""
    kinds = [k for k in found if k != "read"]
    say("")
    rows = [[part, *(cell(found[k].get(part), "{:.2f}") for k in kinds)] for part in (*PARTS, "total")]
    print_table([["seconds", *kinds], *rows])
    cold, read = found["cold"], found["read"]
    reading = read["header"] + read["tokenizer"] + read["tensors"]
    beside = cold["total"] - cold.get("tokenizer", 0.0) - read["header"] - read["tensors"]
    text = "header {header:.2f}, tokenizer {tokenizer:.2f}, every tensor {tensors:.2f}".format(**read)
    goals = [
        ["trace + compile, cold, beside reading", cell(beside, "{:.2f}"), "15"],
        [f"reading alone ({text})", cell(reading, "{:.2f}"), "20"],
        ["from the cache: compile again", cell(found["compile again"]["total"], "{:.2f}"), "3"],
        ["from the cache: LLM() again", cell(found["LLM() again"]["total"], "{:.2f}"), "3"],
    ]
    print_table([["", "seconds", "goal"], *goals])


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a build of a large checkpoint of random weights."""
    wanted, free = args.gigabytes * GB, shutil.disk_usage(args.tmp).free
    if free < 2.3 * wanted:
        raise OSError(
            f"{args.tmp} has {free / GB:.0f} GB free; checkpoint and engine need {2.3 * wanted / GB:.0f}"
        )
    with tempfile.TemporaryDirectory(dir=args.tmp) as tmp:
        say(f"  writing {args.gigabytes:g} GB of random weights")
        total, largest = write_checkpoint(Path(tmp) / "model", int(wanted))
        say("  building")
        env = {"XDG_CACHE_HOME": f"{tmp}/cache"}
        made = worker("build_worker.py", "compile", f"{tmp}/model", f"{tmp}/engine", env=env)
    allowed = 1.3 * largest + 1.5 * GB
    sizes = {"checkpoint": total, "largest tensor": largest, "goal": allowed, "peak": made.peak}
    sizes |= {"peak of own memory": made.own, "peak of mapped files": made.mapped}
    print_table(
        [["build of a synthetic checkpoint", "GB"], *([k, cell(v / GB, "{:.2f}")] for k, v in sizes.items())]
    )
    seconds = made.said["total"]
    say(f"{made.peak / allowed:.2f} x the goal; {seconds:.0f} s, {total / seconds / GB:.2f} GB/s\n")
    return {**sizes, "seconds": made.said}


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, default=DEMO, help="default: the demo model of `make setup`")
    p.add_argument("--repeats", type=int, default=3, help="builds of each kind")
    p.add_argument("--starts", type=int, default=7, help="processes for each start-up time")
    p.add_argument("--gigabytes", type=float, default=8, help="size of the synthetic checkpoint")
    p.add_argument(
        "--tmp", type=Path, default=Path(tempfile.gettempdir()), help="room for it and its engine, on a disk"
    )
    p.add_argument(
        "--without", action="append", default=[], choices=["starts", "build", "memory"], help="leave out"
    )
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    if "build" not in args.without and not args.model.exists():
        p.error(f"{args.model}: no such file; `make setup` makes the demo model")
    return args


if __name__ == "__main__":
    main()
