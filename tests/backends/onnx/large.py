"""Run as a process of its own: how much memory an export of large weights takes, in bytes."""

import resource
import sys
from pathlib import Path

from irloom.backends.onnx import export
from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.parse import parse

WEIGHTS, ROWS, WIDE = 12, 1024, 2048


def most(rows: int, folder: Path) -> int:
    """The most memory that was ever in use, after an export of weights with so many rows."""
    params = ", ".join(f'w{i}: f32[{rows}, {WIDE}] = weight("w{i}")' for i in range(WEIGHTS))
    lines = [f"    u{i} = linear(x, w{i})\n    s{i} = sum(u{i})\n" for i in range(WEIGHTS)]
    joined = ", ".join(f"s{i}" for i in range(WEIGHTS))
    head = f"# irloom 1\nT: dim[1, 64]\n\ndef main(x: f32[T, {WIDE}], {params}):\n"
    m = parse(f"{head}{''.join(lines)}    y = concat({joined}, dim=1)\n    return y\n")
    export(m, RandomCheckpoint(0, {f"w{i}": (rows, WIDE) for i in range(WEIGHTS)}), folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    before, after = (most(rows, Path(sys.argv[1])) for rows in (64, ROWS))
    sys.stdout.write(str(after - before))
