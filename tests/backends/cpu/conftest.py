"""The kernels as compiled for each instruction set that this machine runs, on one thread and on two."""

import platform
from collections.abc import Iterator

import pytest

from irloom.backends.cpu.native import Kernels, load_kernels
from irloom.backends.machine import compiler, cpu_features

_X86 = platform.machine() == "x86_64"
_FAR = {"avx2", "fma", "f16c"} <= set(cpu_features())
# The widest that the machine has, AVX2, and what any 64-bit x86 runs.
MARCHES = ("native", *(("x86-64-v3",) if _X86 and _FAR else ()), *(("x86-64",) if _X86 else ()))


@pytest.fixture(scope="session", params=MARCHES if compiler() else ())
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Kernels with two threads."""
    found = load_kernels(request.param)
    assert found is not None
    found.set_threads(2)
    yield found
    found.set_threads(1)


@pytest.fixture(params=[1] if compiler() else ())
def has_compiler() -> None:
    """What the machine must have for tests of the compiler itself."""
