"""How long passes take on large programs, with every layer written out and with layers outlined.

    python benchmarks/rewrite.py --json rewrite.json

Each model is a config of published sizes, traced without weights in a fresh process; its program then goes
through the CPU target's pipeline twice: flat (without ``outline``: a node for each op of each layer) and
outlined (once ``outline`` has run, all passes again). A pass's seconds are its own, those of verifying what
it left, and those of the copy in the record, by the clock; the sum is of CPU, which other work on the machine
disturbs less. The goals: 5 s for 10,000 nodes, 0.5 s outlined.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from trace import MODELS
from typing import Any

from processes import ProcessError, worker
from report import cell, machine, print_table, say, write_json

SHOWN = ("Llama 3 70B", "DeepSeek V3", "Qwen 3 Next 80B")


def main() -> None:
    args = arguments()
    say(f"load average {machine()['load']:.1f}; medians of {args.repeats}\n")
    figures: dict[str, Any] = {"machine": machine(), "models": {}}
    for name in args.only or SHOWN:
        try:
            figures["models"][name] = measure(*MODELS[name], args.repeats)
        except ProcessError as error:
            figures["models"][name] = {"failed": str(error)}
            say(f"{name}: FAILED: {error}")
    found = {name: f for name, f in figures["models"].items() if "failed" not in f}
    if found:
        print_table(table(found))
    write_json(args.json, figures)


def measure(cls: str, settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """One model in a fresh process."""
    with tempfile.TemporaryDirectory() as tmp:
        said = worker(
            "rewrite_worker.py", cls, json.dumps(settings), str(repeats), env={"XDG_CACHE_HOME": tmp}
        ).said
    return {"layers": settings.get("num_hidden_layers"), **said}


def table(found: dict[str, Any]) -> list[list[str]]:
    """A row per pass and a column per model and form; the last rows are the sum, and nodes per second."""
    columns = [(name, form) for name in found for form in ("flat", "outlined")]
    runs = [found[name][form] for name, form in columns]
    rows = [["", *(f"{name}, {form}" for name, form in columns)]]
    rows.append(["nodes", *(f"{run['nodes']:,}" for run in runs)])
    for i, step in enumerate(runs[0]["passes"]):
        rows.append([step, *(f"{run['seconds'][i]:.3f}" for run in runs)])
    rows.append(["in all, CPU", *(f"{run['total']:.3f}" for run in runs)])
    flat = [found[name]["flat"] if form == "flat" else None for name, form in columns]
    rows.append(
        ["for 10,000 nodes", *(cell(run and run["total"] / run["nodes"] * 1e4, "{:.3f}") for run in flat)]
    )
    return rows


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", action="append", choices=list(MODELS), help="repeatable; default: three")
    p.add_argument("--repeats", type=int, default=3, metavar="N")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


if __name__ == "__main__":
    main()
