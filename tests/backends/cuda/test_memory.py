"""Where values lie: nothing is where another is still read, and the plan holds the largest step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.large import same_memory
from irloom.backends.cuda.memory import Block, Gaps
from irloom.backends.cuda.products import Product, Way
from irloom.backends.cuda.runner import planned
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.types import Type
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import Model


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 9)), min_size=1, max_size=40))
def test_what_is_taken_lies_apart(plan: list[tuple[int, int]]) -> None:
    gaps, held = Gaps(), list[tuple[int, int]]()
    for size, back in plan:
        start = gaps.take(size)
        assert start % 256 == 0
        assert all(start + size <= at or at + n <= start for at, n in held)
        held.append((start, size))
        if back < len(held):
            gaps.give(*held.pop(back))
    for one in held:
        gaps.give(*one)
    assert gaps.free == [(0, 1 << 62)]


def test_a_quantized_value_has_its_scales_behind_its_entries() -> None:
    fp8 = Quant("fp8", ELEMS["f8e4m3"], 0, ELEMS["f32"])
    x = Block(4096, "cpu").operand(256, Type(fp8, (3, 100)), {})
    assert not isinstance(x, torch.Tensor)
    assert x.values.shape == (3, 100) and x.scales.shape == (3, 1)
    assert x.scales.data_ptr() >= x.values.data_ptr() + 300


def test_a_larger_step_needs_a_larger_block() -> None:
    program = Model.of("llama").program()
    few, many = planned(program, 1, 1), planned(program, 64, 8)
    assert 0 < few < many


def test_a_sum_lies_where_what_it_is_added_to_did(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[bool] = []
    run = Product.run

    def seen(p: Product, way: Way, work: Workspace) -> None:
        if p.residual is not None and isinstance(p.out, torch.Tensor):
            added.append(same_memory(p.out, p.residual))
        run(p, way, work)

    monkeypatch.setattr(Product, "run", seen)
    model = Model.of("llama")
    model.served(model.engine(model.program(), device=DEVICE), model.traffic(1, requests=1, most=1))
    assert len(added) > 2 and all(added)
