"""irloom's ONNX engines against onnxruntime-genai and transformers: same machine, same run, same requests.

    python benchmarks/onnx.py --json onnx.json

As ``cpu.py``, whose tables these are: a process for each contender, interleaved runs, medians, random prompts
of a fixed seed, greedy answers. irloom's own CPU engine takes part, so that one sees what ONNX Runtime costs.
onnxruntime-genai's models are made once by its own builder, from the same GGUF. README.md here says more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from contenders import Contender
from cpu import compare, options
from report import say
from workers.core import HERE, imports
from workload import Load

ROWS = {"f32": ("+", "fp32"), "int8": ("+ quantize(int8)", "int8"), "int4": ("+ quantize(int4)", "int4")}
"""By name: irloom's passes (see ``cpu.py``), and the precision that the builder of the peer is asked for."""
PEERS = Path.home() / ".cache" / "irloom" / "benchmarks"


def main() -> None:
    args = arguments()
    load = Load(args)
    compare(contenders(args, load), load, args)


def contenders(args: argparse.Namespace, load: Load) -> Iterator[Contender]:
    """Our engines in each row, then the peers; those that cannot be are out from the start."""
    common = {"model": str(args.gguf), "longest": load.longest}
    for target in ("onnx", "cpu"):
        for name in args.row:
            mine = {**common, "pipeline": ROWS[name][0], "requests": args.requests, "target": target}
            yield Contender(f"irloom {target} {name}", "irloom_worker.py", mine, limit=args.limit)
    for name in args.row if "genai" not in args.without else ():
        made = Contender(f"onnxruntime-genai {name}", "genai_worker.py", {}, limit=args.limit)
        built = genai(args, ROWS[name][1])
        made.options = {"model": str(built), "longest": load.longest}
        if isinstance(built, str):
            made.out = built
            say(f"  {made.name}: SKIPPED: {built}")
        yield made
    if "transformers" not in args.without:
        theirs = {**common, "dtype": "float32", "compiled": False}
        yield Contender("transformers eager", "transformers_worker.py", theirs, limit=args.limit)


def genai(args: argparse.Namespace, precision: str) -> Path | str:
    """The model for onnxruntime-genai, made if it is not there; or why there is none."""
    for package in ("onnxruntime_genai", "onnx_ir"):
        if not imports(sys.executable, package):
            return f"{package} is not installed here: pip install '.[bench]'"
    try:
        made = PEERS / f"{args.gguf.stem}-genai-{version('onnxruntime-genai')}" / precision
    except PackageNotFoundError:
        return "onnxruntime_genai is no installed package"
    if made.is_dir():
        return made
    say(f"  onnxruntime-genai builds its {precision} model")
    made.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "genai_model.py"), str(args.gguf.resolve()), str(made), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
    return made if done.returncode == 0 else f"its builder failed: {said[-1][:200]}"


def arguments() -> argparse.Namespace:
    p = options(__doc__)
    p.add_argument("--row", action="append", choices=list(ROWS), help="repeatable; default: all")
    p.add_argument(
        "--without", action="append", default=[], choices=["genai", "transformers"], help="leave out"
    )
    args = p.parse_args()
    args.row = args.row or list(ROWS)
    if not args.gguf.is_file():
        p.error(f"{args.gguf}: no such file; `make setup` makes the demo model")
    return args


if __name__ == "__main__":
    main()
