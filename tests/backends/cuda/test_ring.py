"""Products whose weights are under way before the tokens: what they compile to; on Hopper, their results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.boxed_tiles import boxed_tiles
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.kernels.ring import Ring, ring_product
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.work import Workspace

from .cross import compiled, copied, counts, spilled
from .device import DEVICE
from .product_cases import Case, close
from .test_boxed import FORMS, KINDS

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9

SIGNATURE = {
    "out": "*bf16", "counters": "*i32", "T": "i32", "scale": "fp32", "cap": "fp32",
    **dict.fromkeys(("N", "K", "out_row", "residual_row"), "i32:16"),
    **dict.fromkeys(("x_scale_row", "w_scale_row"), "i32"),
}  # fmt: skip
CASES: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "bf16 whose sums are shared": (
        {"x": copied("bf16", 16, 64, 64), "w": copied("bf16", 16, 128, 64), "residual": "*bf16",
         "parts": "*fp32"},
        {"BN": 128, "BK": 64, "SPLIT": 4, "GATED": False, "ACT": None},
        "m64n64k16",
    ),
    "fp8 with a gate": (
        {"x": copied("fp8e4nv", 8, 64, 128), "w": copied("fp8e4nv", 8, 64, 128), "x_scales": "*fp32",
         "w_scales": "*fp32"},
        {"BN": 64, "BK": 128, "SPLIT": 1, "GATED": True, "ACT": "silu"},
        "m64n64k32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_weights_are_copied_before_the_wait_and_products_run_meanwhile(name: str) -> None:
    types, constants, shape = CASES[name]
    rest = {n: None for n in ("x_scales", "w_scales", "bias", "residual", "parts") if n not in types}
    made = compiled(
        "irloom.backends.cuda.kernels.ring_kernel", "ring_kernel", SIGNATURE | types,
        {"CAPPED": False, "BT": 64, "STAGES": 4, "WARPS": 4, "CHAIN": True, **rest, **constants},
        num_warps=4, maxnreg=80,
    )  # fmt: skip
    ptx = made["ptx"]
    assert ptx.count("griddepcontrol.wait") == 2, "who copies tokens waits, and who multiplies and writes"
    assert f"wgmma.mma_async.sync.aligned.{shape}" in ptx
    copies = [part.count("cp.async.bulk.tensor.2d") for part in ptx.split("griddepcontrol.wait")]
    assert 4 * (2 if constants["GATED"] else 1) in copies[:-1], "a box for each place"
    assert not spilled(ptx), "the registers that two programs leave each other are enough"
    assert made["shared"] <= 227 << 9, "two programs share a multiprocessor"
    assert counts(ptx) == (["acq_rel", "relaxed"] if constants["SPLIT"] > 1 else [])


def run(case: Case, tile: Ring) -> torch.Tensor:
    (x, weight, bias, residual, _), expected = case.operands()
    work, out = Workspace(DEVICE), case.poisoned()
    assert x is not None and weight is not None
    assert not isinstance(bias, Quantized) and not isinstance(residual, Quantized)
    for _ in range(2):
        out.fill_(float("nan"))
        ring_product(out, x, weight, bias, residual, case.form, work, tile)
        close(out, expected, case.dtype)
        assert not work.counters.any(), "whoever goes last leaves zeros"
    return out


cases = st.builds(
    Case,
    rows=st.integers(1, 140),
    n=st.sampled_from([24, 136, 320]),
    k=st.sampled_from([16, 96, 272, 1024]),
    bias=st.booleans(),
    residual=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
TILES = Ring(64, 16, 64, 1, 4, 2), Ring(64, 64, 64, 8, 4, 6), Ring(128, 64, 128, 4, 8, 2), Ring(128, 128, 64)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", TILES)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(case=cases)
def test_a_product_is_that_of_its_body(tile: Ring, kind: str, case: Case) -> None:
    case.weight, case.x = KINDS[kind]
    case.form = FORMS[case.seed % len(FORMS)]
    run(case, tile)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
def test_programs_that_share_a_sum_give_the_same_every_time() -> None:
    case, tile = Case(60, 320, 4096), Ring(64, 64, 64, 4)
    assert torch.equal(run(case, tile), run(case, tile))


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
def test_padding_rows_spoil_no_others() -> None:
    case = Case(40, 136, 96)
    (x, weight, *_), expected = case.operands()
    assert isinstance(x, torch.Tensor) and weight is not None
    x[37:] = float("nan")
    out = case.poisoned()
    ring_product(out, x, weight, None, None, Form(), Workspace(DEVICE), Ring(64, 64, 64, 2))
    close(out[:37], expected[:37], case.dtype)


def test_one_or_two_programs_have_a_multiprocessor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the four products of an 8B model; none where programs would go one after another."""
    monkeypatch.setattr("irloom.backends.cuda.boxed_tiles.has_rings", lambda: True)
    monkeypatch.setattr("irloom.backends.cuda.boxed_tiles.multiprocessors", lambda: 132)
    for n, k, gated in ((6144, 4096, False), (4096, 4096, False), (14336, 4096, True), (4096, 14336, False)):
        tiles = boxed_tiles(64, n, k, 2, gated, False)
        assert tiles
        for tile in tiles:
            assert isinstance(tile, Ring)
            held = tile.stages * tile.k * 2 * (tile.n * (1 + gated) + tile.t)
            each, programs = (227 << 10) // held, -(-n // tile.n) * tile.split
            assert 132 * (each - 1) < programs <= 132 * each or (each == 1 and programs > 50)
    assert not any(isinstance(tile, Ring) for tile in boxed_tiles(64, 128256, 4096, 2, False, False))
