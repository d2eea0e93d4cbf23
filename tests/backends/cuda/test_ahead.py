"""Kernels that a build will launch are compiled before it does, by processes, into Triton's cache."""

from __future__ import annotations

from pathlib import Path

from tests.backends.cuda.no_gpu import rehearsal

PROGRAM = """
from irloom.backends.cuda.ahead import compile_all, rehearsed
from irloom.backends.cuda.kernels.elementwise import BLOCKS, elementwise

x = torch.full((3, 64), 7.0, dtype=torch.bfloat16)
out = torch.full((3, 32), 5.0, dtype=torch.bfloat16)
def run():
    for _ in range(2):
        elementwise(out, x[:, :32], formula="x0 * 2.0")
jobs, told = rehearsed(run), []
compile_all(jobs, lambda done, total: told.append([done, total]), processes=2)
print(json.dumps({"jobs": len(jobs), "ways": len(BLOCKS), "told": told, "out": out.unique().tolist(),
                  "settled": len(tuner().settled), "known": len(tuner().known)}))
"""


def test_what_a_rehearsal_notes_is_compiled(tmp_path: Path) -> None:
    """Every candidate is, once; nothing is launched, nothing chosen."""
    found = rehearsal(PROGRAM, tmp_path)
    jobs = found["jobs"]
    assert jobs == found["ways"] > 1
    assert found["told"] == [[n, jobs] for n in range(jobs + 1)]
    assert found["out"] == [5.0] and found["settled"] == found["known"] == 0
    assert len(list((tmp_path / "triton").rglob("*.cubin"))) == jobs
