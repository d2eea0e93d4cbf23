"""Kernels that a build will launch are compiled before it does, by processes, into Triton's cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
import torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.get_device_name = lambda *_: "none"
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class NoGpu:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    launcher_cls = staticmethod(lambda source, metadata: None)

driver.set_active(NoGpu())
from irloom.backends.cuda.ahead import compile_all, rehearsed
from irloom.backends.cuda.kernels.elementwise import BLOCKS, elementwise
from irloom.backends.cuda.tuning import tuner

tuner().clock = lambda run: 1.0
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
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "XDG_CACHE_HOME": str(tmp_path)}
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | cache
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    jobs = found["jobs"]
    assert jobs == found["ways"] > 1
    assert found["told"] == [[n, jobs] for n in range(jobs + 1)]
    assert found["out"] == [5.0] and found["settled"] == found["known"] == 0
    assert len(list((tmp_path / "triton").rglob("*.cubin"))) == jobs
