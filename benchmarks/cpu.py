"""irloom on CPU against transformers and llama.cpp: same machine, same run, same GGUF, same requests.

    python benchmarks/cpu.py --json cpu.json

Each contender has a process of its own; runs are interleaved (A, B, C, A, B, C), figures are medians.
Prompts are random tokens of a fixed seed, new ones every time, so that no prefix cache helps. Answers are
greedy and of a fixed length. README.md here says how to read the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contenders import Contender, contenders
from report import cell, machine, print_table, say, write_json
from workers.core import WorkerError
from workload import DECODE, ROWS, Load, Row

DEMO = Path(__file__).resolve().parent.parent / ".demo" / "gemma-3-270m-q4_k_m.gguf"
PIPELINES = {
    "f32": "+",
    "int8": "+ quantize(int8)",
    "same bits": "+ quantize(int4, override=('lm_head=int8', 'down_proj=int8'))",
}
"""By row. "+ passes" puts passes before plan-memory in the default pipeline; "same bits" takes as many bits
per weight as the demo's Q4_K_M, where the largest tensor is in 8 bits and the rest takes 4.5 to 6.6."""


def main() -> None:
    args = arguments()
    load = Load(args)
    compare(contenders(args, load.longest), load, args)


def compare(contenders: Iterable[Contender], load: Load, args: argparse.Namespace) -> None:
    """Measure ``contenders``, print their tables, write their figures."""
    load_now = machine()["load"]
    say(f"{args.gguf.name}, {args.threads} threads, medians of {args.repeats}, load average {load_now:.1f}")
    if load_now > 0.5:
        say("  note: the machine is not idle; ratios are fairer than figures, and neither is for quoting")
    field = list(contenders)
    try:
        for c in field:
            if c.out is None:
                c.start(args.threads, load)
        bandwidth = probe(field, args)
        measure(field, load, args)
        bandwidth = max(bandwidth, probe(field, args))
    finally:
        for c in field:
            c.close()
    show(field, load, bandwidth, args)
    write_json(args.json, figures(field, bandwidth, args))


def measure(field: list[Contender], load: Load, args: argparse.Namespace) -> None:
    """Every row, repeat and contender, interleaved; a pause lets one contender's threads fall asleep."""
    for repeat in range(args.repeats):
        for row in ROWS:
            requests = load.requests(row, repeat)
            for c in field:
                time.sleep(args.pause)
                answer = c.answer(requests)
                if answer is not None:
                    c.samples.setdefault(row.name, []).append(row.value(answer, requests))
                    c.tokens.setdefault(row.name, []).append(answer["tokens"])
        say(f"  repeat {repeat + 1} of {args.repeats} done")


def probe(field: list[Contender], args: argparse.Namespace) -> float:
    """Bytes per second that all threads read: the best of two probes; 0 without an irloom to run them."""
    for c in field:
        if c.out is None and c.worker is not None and c.script == "irloom_worker.py":
            try:
                found = c.worker.ask("bandwidth", args.limit, megabytes=args.probe, repeats=12)
            except WorkerError as error:
                c.drop(str(error))
                continue
            ours, torch = found["kernels"] / 1e9, found["torch"] / 1e9
            say(f"  read bandwidth: {ours:.1f} GB/s by the kernels' probe, {torch:.1f} by torch")
            return max(found.values())
    return 0.0


def median(c: Contender, row: Row) -> float | None:
    got = c.samples.get(row.name)
    return statistics.median(got) if got else None


def bits(c: Contender, field: list[Contender]) -> float | None:
    """Per weight, over the tensors of the file: the one count of parameters that all share."""
    parameters = next((o.facts["parameters"] for o in field if o.facts.get("parameters")), None)
    return 8 * c.facts["weight_bytes"] / parameters if parameters and "weight_bytes" in c.facts else None


def share(c: Contender, bandwidth: float) -> float | None:
    """Of the measured read bandwidth, by weights alone, while one request decodes."""
    alone = median(c, DECODE)
    return alone * c.facts["weight_bytes"] / bandwidth if alone and bandwidth else None


def agreement(c: Contender, field: list[Contender]) -> float | None:
    """Of the tokens decoded alone, those before the first that differs from transformers eager."""
    reference = next((o for o in field if o.name.startswith("transformers eager")), None)
    if reference is None or not c.tokens.get("decode") or not reference.tokens.get("decode"):
        return None
    same = total = 0
    for (mine,), (theirs,) in zip(c.tokens["decode"], reference.tokens["decode"], strict=False):
        pairs = [a == b for a, b in zip(mine, theirs, strict=True)]
        same, total = same + (pairs.index(False) if False in pairs else len(pairs)), total + len(pairs)
    return same / total


def ratio(ours: Contender, peer: Contender, row: Row) -> float | None:
    """How many times better ours is."""
    a, b = median(ours, row), median(peer, row)
    return None if a is None or b is None else (a / b if row.more else b / a)


def show(field: list[Contender], load: Load, bandwidth: float, args: argparse.Namespace) -> None:
    """The table of figures, the table of ratios, and who was left out."""
    heads = [
        "bits/weight",
        "decode tok/s",
        "of bandwidth",
        f"first of {args.first_prompt} ms",
        f"{args.requests} together tok/s",
        "same tokens",
    ]
    prompts, new = sum(p for p, _ in load.mixed), sum(n for _, n in load.mixed)
    say(f"\nread bandwidth {bandwidth / 1e9:.1f} GB/s")
    say(f"together: {prompts} prompt tokens and {new} answered, both counted\n")
    rows = []
    for c in field:
        found = [cell(median(c, row), row.form) for row in ROWS]
        percent = [cell(x, "{:.0%}") for x in (share(c, bandwidth), agreement(c, field))]
        rows.append(
            [c.name, cell(bits(c, field), "{:.2f}"), found[0], percent[0], found[1], found[2], percent[1]]
        )
    print_table([["", *heads], *rows])
    took_part = [c for c in field if c.samples]
    ours = [c for c in took_part if c.script == "irloom_worker.py"]
    peers = [c for c in took_part if c not in ours]
    times = [
        [f"{c.name} / {p.name}", *(cell(ratio(c, p, row), "{:.2f}x") for row in ROWS)]
        for c in ours
        for p in peers
    ]
    if times:
        print_table([["times better", "decode", "first token", "together"], *times])
    for c in field:
        if c.out is not None:
            say(f"without {c.name}: {c.out}")


def figures(field: list[Contender], bandwidth: float, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was printed, and every sample."""
    found = {
        c.name: {
            "skipped": c.out,
            "bits_per_weight": bits(c, field),
            "median": {row.name: median(c, row) for row in ROWS},
            "bandwidth_share": share(c, bandwidth),
            "same_tokens": agreement(c, field),
            "samples": c.samples,
            "facts": c.facts,
        }
        for c in field
    }
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {"machine": machine(), "settings": settings, "bandwidth": bandwidth, "contenders": found}


def options(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark of requests is told: the model, threads, requests, limits, where figures go."""
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    p.add_argument(
        "--gguf", type=Path, default=DEMO, help="the model; default: the demo model of `make setup`"
    )
    p.add_argument("--threads", type=int, default=cores, help="for everybody; default: all cores")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--new", type=int, default=128, help="tokens decoded by the request that is alone")
    p.add_argument("--first-prompt", type=int, default=512, help="prompt tokens before the first token")
    p.add_argument("--requests", type=int, default=16, help="that arrive together")
    p.add_argument("--most-prompt", type=int, default=256, help="their longest prompt; the shortest has 16")
    p.add_argument("--most-new", type=int, default=96, help="their longest answer; the shortest has 8")
    p.add_argument("--limit", type=float, default=1800, help="seconds for any other answer")
    p.add_argument("--probe", type=int, default=512, help="megabytes that the bandwidth probe reads")
    p.add_argument("--pause", type=float, default=0.3, help="seconds between runs")
    p.add_argument("--vocab", type=int, default=32000, help="prompt tokens are drawn below this")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, metavar="FILE")
    return p


def arguments() -> argparse.Namespace:
    p = options(__doc__)
    p.add_argument(
        "--pipeline",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help=f"irloom columns; default: {PIPELINES}",
    )
    p.add_argument(
        "--dtype", action="append", metavar="DTYPE", help="of transformers, repeatable; default: float32"
    )
    p.add_argument(
        "--without",
        action="append",
        default=[],
        choices=["transformers", "compile", "llama"],
        help="leave out",
    )
    p.add_argument(
        "--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python; default: this one"
    )
    p.add_argument(
        "--compile-limit", type=float, default=600, help="seconds for one warm-up answer of the compiled peer"
    )
    args = p.parse_args()
    args.pipeline = dict(text.split("=", 1) for text in args.pipeline) or PIPELINES
    args.dtype = args.dtype or ["float32"]
    if not args.gguf.is_file():
        p.error(f"{args.gguf}: no such file; `make setup` makes the demo model")
    return args


if __name__ == "__main__":
    main()
