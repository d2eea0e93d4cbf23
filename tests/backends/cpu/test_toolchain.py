"""Compiling once a machine, generated source, and the thread pool under use from several Python threads."""

import ctypes
import threading
from pathlib import Path

import pytest
import torch

from irloom.backends.cpu import toolchain
from irloom.backends.cpu.native import Kernels, bind
from irloom.backends.cpu.pack import Layout, pack

SMALL = {"one.cpp": '#include "vec.h"\nextern "C" int64_t answer() { return 42; }'}

SCALED = """
#include "extra.h"
using namespace irl;
extern "C" void scaled_tanh(const float* x, float* y, int64_t n) {
  parallel_range(n / W, 1, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) store(y + i * W, tanh(load(x + i * W)) * 2.0f);
  });
}
"""


@pytest.mark.usefixtures("has_compiler")
class TestBuild:
    def test_the_same_source_is_compiled_once(self, tmp_path: Path) -> None:
        first = toolchain.build(SMALL, folder=tmp_path)
        assert first is not None
        stamp = first.stat().st_mtime_ns
        assert toolchain.build(SMALL, folder=tmp_path) == first
        assert first.stat().st_mtime_ns == stamp
        assert [p.name for p in tmp_path.iterdir()] == [first.name]
        assert bind(ctypes.CDLL(str(first)), "answer", ":i")() == 42

    def test_other_source_or_flags_are_another_library(self, tmp_path: Path) -> None:
        other = {"one.cpp": SMALL["one.cpp"].replace("42", "43")}
        paths = {
            toolchain.build(SMALL, folder=tmp_path),
            toolchain.build(other, folder=tmp_path),
            toolchain.build(SMALL, "x86-64", tmp_path),
        }
        assert len(paths) == 3

    def test_a_compiler_that_refuses_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(toolchain.CompileError, match="nonsense"):
            toolchain.build({"one.cpp": "nonsense;"}, folder=tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_generated_source_uses_the_same_pool(
    kernels: Kernels, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    march: str = request.node.callspec.params["kernels"]
    extra = kernels.compile_extra(SCALED, march, tmp_path)
    x, y = torch.linspace(-5, 5, 4096), torch.full((4096,), float("nan"))
    bind(extra, "scaled_tanh", "ppi")(x.data_ptr(), y.data_ptr(), 4096)
    torch.testing.assert_close(y, x.tanh() * 2, rtol=2e-6, atol=1e-6)


def test_many_callers_at_once(kernels: Kernels) -> None:
    """One caller has the pool, the others run alone: every result is whole."""
    weight, x = pack(torch.randn(640, 320)), torch.randn(5, 320)
    want = torch.empty(5, 640)
    kernels.linear(weight, x, want)
    wrong: list[int] = []

    def call(index: int) -> None:
        y = torch.empty(5, 640)
        for _ in range(50):
            y.fill_(float("nan"))
            kernels.linear(weight, x, y)
            if not torch.equal(y, want):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for threads in (1, 3, 2, 4, 2):
        kernels.set_threads(threads)
    for caller in callers:
        caller.join()
    kernels.set_threads(2)
    assert not wrong


def test_a_layout_counts_its_bytes() -> None:
    """Four bits and an f16 scale for 32: 4.5 bits a weight; rows round up to panels."""
    assert Layout(1024, 640, "i4", 32, "f16").bytes == 1024 * 640 * 4.5 / 8
    assert Layout(17, 64, "f32").bytes == 32 * 64 * 4
    assert Layout(16, 96, "i8", 96, "f32", has_zeros=True).bytes == 16 * 96 + 64 + 64
