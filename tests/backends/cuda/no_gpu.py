"""Programs that rehearse for a GPU that is not here: launches are noted, and none is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BEGIN = """
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
from irloom.backends.cuda.tuning import tuner

tuner().clock = lambda run: 1.0
"""


def rehearsal(program: str, cache: Path, *words: Path | str) -> dict[str, Any]:
    """The JSON that ``program`` prints at last, in a process with a GPU to compile for and a ``cache`` of its
    own.
    """
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache / "triton"), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", BEGIN + program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
