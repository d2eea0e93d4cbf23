"""Norms: against their bodies in f64, on rows that lie apart; rounded, they are the body's, rounded."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels import rows
from irloom.ir.ops import OPS
from irloom.ir.quantized import quantize
from tests.backends.cuda.cross import compiled
from tests.backends.cuda.near import assert_near, assert_rounded_alike, columns, normal, poisoned, quantized

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SIZES = st.tuples(st.integers(1, 5), st.sampled_from([1, 15, 64, 100, 257]))
few = settings(max_examples=12, deadline=None)


@few
@given(SIZES, DTYPES, st.booleans())
def test_a_norm_of_rows(size: tuple[int, int], dtype: torch.dtype, weighted: bool) -> None:
    t, d = size
    x, out = columns(1, t, d, dtype=dtype), poisoned(t, d, dtype=dtype)
    w, b = (normal(s, d, dtype=dtype) if weighted else None for s in (2, 3))
    wide = [None if v is None else v.double() for v in (w, b)]
    rows.rms_norm(out, x, w, eps=1e-4)
    assert_near(out, OPS["rms_norm"].reference(x.double(), wide[0], eps=1e-4))
    rows.layer_norm(out, x, w, b, eps=1e-4)
    assert_near(out, OPS["layer_norm"].reference(x.double(), *wide, eps=1e-4))
    rows.l2_norm(out, x)
    assert_near(out, OPS["l2_norm"].reference(x.double()))


@few
@given(SIZES, DTYPES)
def test_a_sum_and_its_norm(size: tuple[int, int], dtype: torch.dtype) -> None:
    t, d = size
    x, y = columns(1, t, d, dtype=dtype), columns(2, t, d, dtype=dtype, more=16)
    w, v = (normal(s, d, dtype=dtype) for s in (3, 4))
    total, out = poisoned(t, d, dtype=dtype), poisoned(t, d, dtype=dtype)
    wide = [z.double() for z in (x, y, w, v)]
    rows.rms_norm_add(out, x, y, w, eps=1e-4)
    assert_near(out, OPS["rms_norm_add"].reference(*wide[:3], eps=1e-4))
    rows.add_layer_norm(total, out, x, y, w, v)
    assert torch.equal(total, x + y)
    assert_near(out, OPS["layer_norm"].reference(total.double(), *wide[2:]))
    rows.add_rms_norm(total, out, x, y, w, v, inner_eps=1e-4)
    assert_near(total, OPS["add_rms_norm"].reference(*wide, inner_eps=1e-4)[0])
    assert_near(out, OPS["rms_norm"].reference(total.double(), wide[2]))
    summed = x.clone()
    rows.add_rms_norm(summed, out, summed, y, w)  # in place
    assert torch.equal(summed, x + y)


@few
@given(st.integers(1, 3), st.sampled_from([("f8e4m3", 0), ("f8e4m3", 128), ("i8", 0), ("i8", 64)]), DTYPES)
def test_a_rounded_norm_is_the_norm_rounded(t: int, form: tuple[str, int], dtype: torch.dtype) -> None:
    d = 384 if form[1] else 300
    x, y, w = columns(1, t, d, dtype=dtype), normal(2, t, d, dtype=dtype), normal(3, d, dtype=dtype)
    out, total = quantized(t, d, *form), poisoned(t, d, dtype=dtype)
    rows.add_rms_norm(total, out, x, y, w)
    want = quantize(OPS["rms_norm"].reference(total, w), out.quant)
    assert_rounded_alike(out, want)


def test_parts_of_a_row_and_heads() -> None:
    x, w, out = normal(1, 3, 96), normal(2, 96), poisoned(3, 96)
    rows.rms_norm(out, x, w, groups=4)
    assert_near(out, OPS["rms_norm"].reference(x, w, groups=4))
    heads, out = columns(3, 4, 5, 20), poisoned(4, 5, 20)
    rows.rms_norm(out, heads, w[:20])
    assert_near(out, OPS["rms_norm"].reference(heads, w[:20]))


def test_it_compiles_for_hopper() -> None:
    """Rows are read and written sixteen bytes at a time, weights before the kernel in front has ended."""
    numbers = {f"{name}_{axis}": "i32:16" for name in ("out", "total", "x", "y") for axis in "th"}
    numbers |= {"rows": "i32", "scales_t": "i32", "scales_g": "i32", "eps": "fp32", "inner_eps": "fp32"}
    tensors = dict.fromkeys(("total", "x", "y", "weight"), "*bf16") | {"out": "*fp8e4nv", "scales": "*fp32"}
    constants = {
        "D": 4096, "HEADS": 1, "PARTS": False, "CENTERED": False, "INNER": False, "OVER": 4096, "GROUP": 128,
        "LIMIT": 448.0, "R": 1, "B": 4096, "CHAIN": True, "bias": None, "inner": None,
    }  # fmt: skip
    made = compiled(
        "irloom.backends.cuda.kernels.rows", "norm_rows", tensors | numbers, constants,
        num_warps=8, launch_pdl=True,
    )  # fmt: skip
    code = made["ptx"]
    assert code.count("ld.global.v4") == 6
    assert code.count("st.global.v4") == 3
    assert code.index("ld.global.v4") < code.index("griddepcontrol.wait")
    assert "ld.local" not in code
