"""A product is the same whichever way it goes; each way that can be tried at a shape is right there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.kernels.ring import Ring
from irloom.backends.cuda.kernels.tiled import Tile
from irloom.backends.cuda.product_tiles import SHARED, tiles
from irloom.backends.cuda.products import Own, Product, product
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.tuning import Tuner
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import ELEMS, Quant

from .device import DEVICE
from .product_cases import BLOCK, F8, ROW, TENSOR, TOKEN_GROUP, Case, close, in_fragments

I4 = Quant("i4g32", ELEMS["i4"], 32, ELEMS["bf16"])
I8 = Quant("i8row", ELEMS["i8"], 0, ELEMS["bf16"])
KINDS = {
    "plain": (None, None),
    "fp8 rows": (ROW, ROW),
    "fp8 tensor": (TENSOR, ROW),
    "fp8 blocks": (BLOCK, TOKEN_GROUP),
    "fp8 weight": (ROW, None),
    "i8": (I8, None),
    "i4": (I4, None),
}
FORMS = {
    "plain": Form(),
    "normed": Form(eps=1e-5),
    "activated": Form(act="relu2", scale=2.0),
    "gated": Form(eps=1e-5, act="silu", gated=True),
    "gated and capped": Form(act="gelu", gated=True, softcap=3.0),
}


def product_of(case: Case) -> tuple[Product, torch.Tensor]:
    (x, weight, *rest), expected = case.operands()
    assert x is not None and weight is not None
    bias, residual, norm = (t if isinstance(t, torch.Tensor) else None for t in rest)
    return Product(case.poisoned(), x, weight, bias, residual, norm, case.form), expected


def check(case: Case, fragments: bool = False) -> None:
    p, expected = product_of(case)
    if fragments:
        p = replace(p, weight=in_fragments(p.weight))
    for chosen in p.ways[::3]:
        out = case.poisoned()
        replace(p, out=out).run(chosen, Workspace(DEVICE))
        close(out, expected, case.dtype, 12.0 if case.form.quant else 4.0)


@settings(max_examples=2, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_what_the_body_gives(kind: str, data: st.DataObject) -> None:
    weight, quant = KINDS[kind]
    made = replace(data.draw(st.sampled_from(list(FORMS.values()))), quant=quant)
    check(
        Case(
            rows=data.draw(st.sampled_from((3, 17, 23))), n=48, k=128, weight=weight, form=made,
            bias=data.draw(st.booleans()), residual=data.draw(st.booleans()),
            norm=made.eps is not None and data.draw(st.sampled_from((True, torch.float32))),
            seed=data.draw(st.integers(0, 9)),
        )
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.bfloat16), (20, torch.float16), (3, torch.float32)])
def test_weights_in_fragments_go_every_way_that_fits(rows: int, dtype: torch.dtype) -> None:
    case = Case(rows, 48, 192, I4, form=FORMS["gated"], bias=True, residual=True, norm=True, dtype=dtype)
    check(case, fragments=True)
    p, _ = product_of(replace(case, form=FORMS["normed"]))
    names = {type(way).__name__ for way in replace(p, weight=in_fragments(p.weight)).ways}
    assert names == (
        {"str"} if dtype == torch.float32 else {"str", "Few"} if rows == 1 else {"str", "FourTile"}
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_elements_are_as_exact_as_they_are(dtype: torch.dtype) -> None:
    check(Case(20, 32, 64, form=FORMS["gated"], norm=True, dtype=dtype))


@pytest.mark.parametrize("kind", ["plain", "fp8 rows", "i4"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_result_may_be_the_residual(kind: str, bias: bool) -> None:
    weight, quant = KINDS[kind]
    case = Case(18, 32, 64, weight, form=Form(quant=quant), bias=bias, residual=True)
    p, expected = product_of(case)
    for way in p.ways[::2]:
        assert p.residual is not None
        out = p.residual.clone()
        replace(p, out=out, residual=out).run(way, Workspace(DEVICE))
        close(out, expected, case.dtype, 12.0)


@pytest.mark.parametrize("emits", [ROW, TOKEN_GROUP])
@pytest.mark.parametrize("form", ["gated", "activated"])
def test_the_result_is_rounded_for_the_next_product(emits: Quant, form: str) -> None:
    """Both ways round the same numbers, but for the last bit of a sum."""
    case = Case(18, 128, 64, form=replace(FORMS[form], emits=emits), norm=True)
    p, expected = product_of(case)
    for way in ("library", next(w for w in p.ways if isinstance(w, Own))):
        scales = torch.full((128 // (emits.group or 128), 18), float("nan"), device=DEVICE).t()
        values = torch.full((18, 128), float("nan"), device=DEVICE).to(F8.torch)
        replace(p, out=Quantized(values, scales, None, emits)).run(way, Workspace(DEVICE))
        close(values.float() * scales.repeat_interleave(128 // scales.shape[1], 1), expected, F8.torch, 0.6)


@pytest.mark.parametrize("kind", ["plain", "fp8 rows"])
def test_where_no_ring_runs_the_library_does(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is not timed against rings that do: there it is no candidate."""

    def fails(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    tuner = Tuner(tmp_path / "a.json", lambda run, least: 1.0)
    monkeypatch.setattr("irloom.backends.cuda.tuning.tuner", lambda: tuner)
    monkeypatch.setattr("irloom.backends.cuda.boxed_tiles.has_rings", lambda: True)
    monkeypatch.setattr("irloom.backends.cuda.products.ring_product", fails)
    weight, quant = KINDS[kind]
    p, expected = product_of(Case(24, 4096, 512, weight, form=Form(quant=quant)))
    assert all(isinstance(way, Ring) for way in p.ways)
    product(p.out, p.x, p.weight, None, None, None, form=p.form, work=Workspace(DEVICE))
    assert isinstance(p.out, torch.Tensor)
    close(p.out, expected, torch.bfloat16, 12.0)
    assert "'library'" in tuner.known.values()


def test_rows_that_come_rounded_stay_as_they_are() -> None:
    check(Case(18, 48, 128, BLOCK, TOKEN_GROUP))
    check(Case(18, 48, 64, ROW, ROW, bias=True, residual=True))


def test_no_rows_are_no_launch() -> None:
    work, out = Workspace(DEVICE), torch.empty(0, 32, device=DEVICE)
    x, w = torch.empty(0, 16, device=DEVICE), torch.ones(32, 16, device=DEVICE)
    product(out, x, w, None, None, None, form=Form(), work=work)


@pytest.mark.parametrize("kind", ["plain", "fp8 blocks"])
def test_many_rows_go_some_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irloom.backends.cuda.products.CHUNK", 16)
    weight, quant = KINDS[kind]
    case = Case(40, 32, 128, weight, quant, Form(), bias=True, residual=True)
    p, expected = product_of(case)
    assert isinstance(p.out, torch.Tensor) and case.x == quant
    given = p.out, p.x, p.weight, p.bias, p.residual, p.norm
    product(*given, form=p.form, work=Workspace(DEVICE))
    close(p.out, expected, case.dtype)


def test_nothing_is_taken_twice_from_the_workspace() -> None:
    """A step after warming up takes no memory that was not there."""
    case = Case(40, 48, 128, ROW, form=Form(eps=1e-5, act="silu", gated=True, quant=ROW), norm=True)
    p, _ = product_of(case)
    work = Workspace(DEVICE)
    p.run("library", work)
    held = work.nbytes
    work.reset()
    p.run("library", work)
    assert work.nbytes == held


def test_no_tile_has_groups_of_two_sizes() -> None:
    groups = Quant("w", F8, 64, ELEMS["f32"])
    case = Case(20, 64, 256, groups, form=Form(quant=TOKEN_GROUP))
    assert not [way for way in product_of(case)[0].ways if isinstance(way, Tile)]
    check(case)


@pytest.mark.parametrize("rows", [17, 64, 256, 4096])
@pytest.mark.parametrize(("weight", "quant"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("gated", [False, True])
def test_tiles_fit_and_are_not_too_many(
    rows: int, weight: Quant | None, quant: Quant | None, gated: bool
) -> None:
    n, k = 14336 if gated else 4096, 4096
    four = weight is not None and weight.base.bits == 4
    dtype = torch.bfloat16 if weight is None else torch.uint8 if four else weight.base.torch
    values = torch.empty(n * (1 + gated), k // (1 + four), dtype=dtype, device="meta")
    operand = Quantized(values, values, None, weight) if weight else values
    some = tiles(rows, n, operand, quant, torch.bfloat16, gated)
    assert 0 < len(some) <= 12
    for tile in some:
        entry = 1 if quant else 2
        of_weight = 0.5 if four else values.element_size()
        stage = tile.k * (tile.n * (1 + gated) * of_weight + tile.t * entry)
        assert stage * tile.stages <= SHARED and tile.stages > 1
        assert not (weight and weight.group and weight.group % tile.k)
