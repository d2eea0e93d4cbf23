"""irloom on one GPU against vLLM and transformers: same card, same run, same weights, same requests.

    python benchmarks/cuda.py --models /data/models            # every row; hours with all peers
    python benchmarks/cuda.py --models /data/models --row 8b-bf16-alone --row ttft-bf16 --without-peers

Each row is one `irloom bench --target cuda`, in processes of their own. Weights are random, of the real
shape, and written once to `--models`. Figures go to `benchmarks/results/cuda-DATE.json`, row by row: a later
call on that day replaces the rows that it runs. `benchmarks/render.py` makes the page of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from report import machine, say
from shapes import SHAPES, checkpoint

RESULTS = Path(__file__).resolve().parent / "results"
VERSIONS = ("irloom", "torch", "triton", "transformers", "vllm")
FIGURES = {
    "decode": "decoded tokens/s",
    "output": "answered tokens/s",
    "first": "ms to the first token",
    "open": "s from a new process to the first token",
}
LESS = ("first", "open")
FP8_CACHE = ("quantize(fp8)", "kv-cache(elem=f8e4m3)")
VLLM_FP8 = "vllm(quantization=fp8, kv_cache_dtype=fp8)"
GENERATE = ("transformers", "compile", "batch")


@dataclass(frozen=True)
class Work:
    """A row: a shape, what its elements are made, requests as (how many, prompt, answer), and the goal.

    ``figure`` is a key of ``FIGURES``; of ``LESS`` less is better. ``passes`` join irloom's pipeline.
    """

    title: str
    shape: str
    figure: str
    goal: float
    requests: tuple[int, int, int]
    passes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ("vllm",)


L8, Q06, Q30 = SHAPES
INT4 = "quantize(int4, group=128, scale=bf16)"
WORKS = {
    "8b-bf16-alone": Work(
        "8B bf16, alone, 128/256", L8, "decode", 260, (1, 128, 256), (), ("vllm", *GENERATE)
    ),
    "8b-fp8-alone": Work("8B fp8, alone, 128/256", L8, "decode", 430, (1, 128, 256), FP8_CACHE, (VLLM_FP8,)),
    "8b-int4-alone": Work(
        "8B int4, alone, 128/256", L8, "decode", 620, (1, 128, 256), (INT4,), ("vllm-int4",)
    ),
    "06b-bf16-alone": Work("0.6B bf16, alone, 128/256", Q06, "decode", 1400, (1, 128, 256)),
    "30b-bf16-alone": Work("30B-A3B bf16, alone, 128/256", Q30, "decode", 490, (1, 128, 256)),
    "30b-bf16-64": Work("30B-A3B bf16, 64 of 1024/256", Q30, "output", 3400, (64, 1024, 256)),
    "8b-bf16-64": Work(
        "8B bf16, 64 of 1024/256", L8, "output", 5500, (64, 1024, 256), (), ("vllm", "transformers", "batch")
    ),
    "8b-fp8-64": Work("8B fp8, 64 of 1024/256", L8, "output", 8500, (64, 1024, 256), FP8_CACHE, (VLLM_FP8,)),
    "8b-bf16-2048": Work("8B bf16, 2048 of 128/128", L8, "output", 20000, (2048, 128, 128)),
    "8b-fp8-4096": Work(
        "8B fp8, 4096 of 128/128", L8, "output", 33000, (4096, 128, 128), FP8_CACHE, (VLLM_FP8,)
    ),
    "8b-fp8-1000": Work(
        "8B fp8, 1000 of 1000/1000", L8, "output", 18500, (1000, 1000, 1000), FP8_CACHE, (VLLM_FP8,)
    ),
    "ttft-bf16": Work("8B bf16, first token after 2048", L8, "first", 43, (1, 2048, 16)),
    "ttft-fp8": Work(
        "8B fp8, first token after 2048", L8, "first", 27, (1, 2048, 16), FP8_CACHE, (VLLM_FP8,)
    ),
    "open-bf16": Work("8B bf16, open", L8, "open", 5, (1, 128, 1), (), ()),
}
OPEN = Path(__file__).resolve().parent / "workers" / "open_worker.py"


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    path = args.results / f"cuda-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
    for name in args.row or WORKS:
        say(f"{name}: {WORKS[name].title}")
        try:
            found = opened(WORKS[name], args) if WORKS[name].figure == "open" else measured(WORKS[name], args)
        except subprocess.CalledProcessError as error:
            reason = last_words(error.stderr)
            say(f"  FAILED: {reason}")
            keep(path, name, {"title": WORKS[name].title, "failed": reason})
            continue
        row = result(WORKS[name], found)
        keep(path, name, row, found)
        told = ", ".join(f"{peer} {value:,.1f}" for peer, value in row["peers"].items())
        say(f"  {row['value']:,.1f} {row['unit']}, goal {row['goal']:,}; {told or 'no peers'}")
        for peer, reason in row["left_out"].items():
            say(f"  without {peer}: {reason}")
    say(f"figures: {path}")


def measured(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """What ``irloom bench --json`` says of a row."""
    model = checkpoint(work.shape, args.models)
    requests, prompt, new = work.requests
    numbers = {
        "--requests": requests,
        "--prompt-tokens": prompt,
        "--new-tokens": new,
        "--repeats": args.repeats,
    }
    command = [sys.executable, "-m", "irloom", "bench", str(model), "--target", args.target, "--json"]
    command += [str(word) for pair in numbers.items() for word in pair]
    command += [word for text in work.passes for word in ("--with", text)]
    peers = () if args.without_peers else tuple(args.peer or work.peers)
    for peer in peers:
        command += ["--peer", vllm_int4(work.shape, args.models) if peer == "vllm-int4" else peer]
    command += ["--peer-limit", str(args.peer_limit)]
    if args.peer_python:
        command += ["--peer-python", args.peer_python]
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    return json.loads(done.stdout)


def opened(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of ``workers/open_worker.py``: of the second run, which finds an engine."""
    model = checkpoint(work.shape, args.models)
    command = [sys.executable, str(OPEN), str(model), args.target, *work.passes]
    runs = [subprocess.run(command, check=True, text=True, capture_output=True).stdout for _ in range(2)]
    nothing = {"roofline": None, "joules_per_token": None, "peers": {}, "left_out": {}}
    return json.loads(runs[-1]) | nothing


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


def result(work: Work, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the results: the figure of irloom and of each peer, and the share of the roofline."""
    value, bounds = figure(work, found), found["roofline"]
    share = None
    if bounds and work.figure == "decode":
        share = value / bounds["decode_per_s"]
    if bounds and work.figure == "first" and bounds["first_token_s"]:
        share = 1e3 * bounds["first_token_s"] / value
    return {
        "title": work.title,
        "unit": FIGURES[work.figure],
        "more_is_better": work.figure not in LESS,
        "goal": work.goal,
        "value": value,
        "roofline_share": share,
        "joules_per_token": found["joules_per_token"],
        "peers": {f["about"]: figure(work, f) for f in found["peers"].values()},
        "left_out": found["left_out"],
    }


def figure(work: Work, f: dict[str, Any]) -> float:
    if work.figure == "open":
        return f["seconds"]
    if work.figure == "first":
        return 1e3 * f["alone"]["first_s"]["p50"]
    return f["decode_per_s"] if work.figure == "decode" else f["output_per_s"]


def keep(path: Path, name: str, row: dict[str, Any], found: dict[str, Any] | None = None) -> None:
    """Put a row into the file of results, beside those that are there, with all that was measured."""
    kept = (
        json.loads(path.read_text())
        if path.is_file()
        else {"rows": {}, "measured": {}, "card": None, "driver": None}
    )
    kept |= {"date": path.stem.removeprefix("cuda-"), "versions": versions(), "machine": machine()}
    if found is not None:
        if found["roofline"] is not None:
            kept |= {"card": found["roofline"]["device"], "driver": found["driver"]}
        kept["measured"][name] = found
    kept["rows"][name] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=Path, required=True, help="where checkpoints are, or are to be written")
    p.add_argument("--row", action="append", choices=WORKS, help="may be given again; default: all")
    p.add_argument("--results", type=Path, default=RESULTS, help="folder of the file of results")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--target", default="cuda")
    p.add_argument("--peer", action="append", help="instead of the row's own, as `irloom bench` takes them")
    p.add_argument("--peer-python", help="an interpreter that has the peers")
    p.add_argument("--peer-limit", type=float, default=1800, help="seconds a peer may take for one answer")
    p.add_argument("--without-peers", action="store_true")
    return p.parse_args(argv)


if __name__ == "__main__":
    main()
