"""How far checkpoints in every format of NeMo and Megatron are from Megatron-core's own logits.

``python -m tests.frontends.nemo.table [FAMILY ...]`` makes a tiny model of each family with Megatron-core,
writes it in every format, reads it back, and prints the largest difference of logits.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from tests.frontends.nemo.megatron import FAMILIES
from tests.frontends.nemo.parity import TOLERANCE, difference, library_logits, traced_logits
from tests.frontends.nemo.writers import FORMATS, refused


def row(family: str, folder: Path) -> dict[str, float]:
    """By format, the difference of the library's module with irloom's weights; ``traced``, of the program."""
    kinds = [kind for kind in FORMATS if not refused(family, kind)]
    made = [sys.executable, "-W", "ignore", "-m", "tests.frontends.nemo.make", str(folder)]
    subprocess.run([*made, *(f"{family}:{kind}" for kind in kinds)], check=True, capture_output=True)
    found = {kind: difference(folder / family, library_logits, kind) for kind in kinds}
    return {"traced": difference(folder / family, traced_logits, kinds[-1]), **found}


def line(name: str, cells: list[str]) -> str:
    return f"{name:12} " + " ".join(f"{cell:>8}" for cell in cells)


def main(families: list[str]) -> int:
    """Print the table; the exit code says whether every difference is within the tolerance."""
    columns, found = ["traced", *FORMATS], dict[str, dict[str, float]]()
    for n, column in enumerate(columns):
        sys.stdout.write(f"{n:2} {column}\n")
    sys.stdout.write(f"\n{line('', [str(n) for n in range(len(columns))])}\n")
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found[family] = row(family, Path(folder))
        cells = [f"{found[family][c]:.1e}" if c in found[family] else "-" for c in columns]
        sys.stdout.write(f"{line(family, cells)}\n")
        sys.stdout.flush()
    errors = [error for cells in found.values() for error in cells.values()]
    passed = sum(error <= TOLERANCE for error in errors)
    sys.stdout.write(f"\n{passed} of {len(errors)} within {TOLERANCE:.0e}, worst {max(errors):.1e}\n")
    return int(passed < len(errors))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
