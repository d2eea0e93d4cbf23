"""Kernels have the same names in Triton's cache in every process, so that an engine finds those it brings."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

NAMED = """
import importlib, json, pkgutil, random, sys
import torch
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.is_available = lambda: True
from irloom.backends.cuda import kernels
from triton.runtime.jit import JITFunction
modules = [m.name for m in pkgutil.iter_modules(kernels.__path__)]
draw = random.Random(sys.argv[1])
draw.shuffle(modules)
found = {}
for name in modules:
    module = importlib.import_module(f"{kernels.__name__}.{name}")
    made = [(k, f) for k, f in vars(module).items() if isinstance(f, JITFunction)]
    draw.shuffle(made)
    for k, f in made:
        found[f"{name}.{k}"] = f.cache_key
print(json.dumps(found, sort_keys=True))
"""


@cache
def named(seed: int) -> str:
    """The name of every function of Triton's in our package, asked for in an order of its own."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", NAMED, str(seed)], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_a_kernel_has_one_name_whatever_was_named_before(seed: int) -> None:
    assert named(seed) == named(0)
    assert named(0).count(":") > 100
