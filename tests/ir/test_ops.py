"""Every op: what is inferred is what its body makes, and model ops mean what their papers say."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from irloom.ir import ops
from irloom.ir.cost import step_cost
from irloom.ir.elem import CACHES, ELEMS, SEQS, Elem, Quant
from irloom.ir.errors import IRError
from irloom.ir.op import OPS, Op
from irloom.ir.parse import parse
from irloom.ir.seqs import PagedCache, Seqs
from irloom.ir.types import Type
from irloom.testing import check_op
from irloom.testing.trial import read

OWN = [op for op in OPS if op.place.startswith(str(Path(ops.__file__).parent))]
"""Without what other tests define."""

Case = tuple[list[Any], dict[str, Any]]
"""Operands (types as text, numbers) and attributes."""

MATRIX = ["f32[T, 8]", "bf16[2, T, 8]", "f16[8]"]
INTEGERS = ["i32[T, 8]", "i64[8]"]
PAIRS: list[list[Any]] = [
    ["f32[T, 8]", "f32[8]"],
    ["bf16[T, 1]", "f32[8]"],
    ["bf16[T]", "f16[T]"],
    ["bf16[T, 8]", "f32[()]"],
    ["f32[()]", "bf16[()]"],
    ["i32[T]", "bf16[()]"],
    ["i32[T]", "i64[()]"],
    ["i32[T]", "i64[T]"],
    ["i8[T]", "u8[T]"],
    ["i32[T]", "f16[T]"],
    ["bf16[T]", 2],
    ["bf16[T]", 0.5],
    [0.5, "f16[T]"],
    ["i32[T]", 2],
    ["i32[T]", 0.5],
    [3, "i8[T]"],
]
TRUTHS: list[list[Any]] = [["bool[T]", "bool[2, T]"], ["bool[T]", "i32[T]"]]
COMPARED = [*PAIRS, ["bool[T]", "bool[T]"], ["bool[T]", True]]


def each(*operands: Any, **attrs: Any) -> list[Case]:
    return [(list(x) if isinstance(x, list) else [x], attrs) for x in operands]


def recurrent(name: str, required: list[str], optional: list[str], states: str) -> dict[str, list[Case]]:
    """A recurrent op, and its carried twin."""
    return {
        name: each([*required, "seqs[T, S]"], [*required, "seqs[T, S]", *optional]),
        f"carried_{name}": each(
            [*required, "seqs[T, S]", states], [*required, "seqs[T, S]", states, *optional]
        ),
    }


CACHE, WINDOWED = "paged[bf16, 2][P, 2, 8]", "paged[bf16, 2, 3][P, 2, 8]"
LATENTS, NARROW = "paged[f32, 2](values=0)[P, 2, 8]", "paged[f32, 2](values=5)[P, 2, 8]"
STRIDED, KEYS = "paged[bf16, 4](values=0, stride=2)[P, 2, 8]", "paged[bf16, 4](values=0, stride=2)[P, 1, 8]"
Q, KV = "f32[T, 6, 8]", "f32[T, 2, 8]"
TOKEN = Quant("f8row", ELEMS["f8e4m3"], 0, ELEMS["f32"])
GROUPS, WHOLE = replace(TOKEN, name="f8g4", group=4), replace(TOKEN, name="f8tensor", rows=0)
CASES: dict[str, list[Case]] = {
    **{n: each(*PAIRS, ["bool[T]", 2], ["bool[T]", 0.5]) for n in ("add", "mul")},
    **{n: each(*PAIRS) for n in ("sub", "div", "maximum", "minimum", "floor_div", "mod", "pow")},
    **{n: each(*COMPARED) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{n: each(*TRUTHS) for n in ("logical_and", "logical_or")},
    "bitwise_xor": each(["i64[T, 8]", "i64[8]"], ["i32[T]", 2]),
    **{n: each(*MATRIX, *INTEGERS) for n in ("neg", "abs", "relu", "floor")},
    **{n: each(*MATRIX, *INTEGERS) for n in ("exp", "expm1", "log", "log1p", "sqrt", "rsqrt")},
    **{n: each(*MATRIX, *INTEGERS) for n in ("reciprocal", "sin", "cos", "tanh", "erf", "sigmoid")},
    **{n: each(*MATRIX) for n in ("silu", "softplus")},
    "gelu": each(*MATRIX) + each(*MATRIX, tanh=True),
    "softcap": each(*MATRIX, cap=30.0),
    "quantize": [case for to in (TOKEN, GROUPS) for case in each(*MATRIX, to=to)],
    "logical_not": each("bool[T]", "i32[T]"),
    "where": each(*([f"bool[{d}]", *pair] for d in ("1", "2, T") for pair in PAIRS if "8" not in str(pair)))
    + each(["bool[T]", 1, 0], ["bool[T]", 0.5, 0], ["bool[T]", True, False]),
    "cast": [case for to in ("bf16", "i32", "bool", "f8e4m3") for case in each(*MATRIX, to=ELEMS[to])],
    "all_reduce": each("partial[tp, f32][T, 8]"),
    "silu_mul": each(["bf16[T, 8]", "bf16[T, 8]"], ["f32[T, 8]", "bf16[T, 8]"]),
    "gelu_mul": each(["f32[T, 8]", "f32[T, 8]"], tanh=True),
    "add_rms_norm": each(["bf16[T, 8]", "bf16[T, 8]", "f32[8]"], ["f32[T, 8]"] * 2)
    + each(["bf16[T, 8]", "bf16[T, 8]", None, "f32[8]"], ["f32[T, 8]"] * 2, inner_eps=1e-6),
    "linear_act": each(["bf16[T, 8]", "bf16[6, 8]"], ["f32[T, 2, 8]", "f32[6, 8]", "f32[6]", "f32[T, 2, 6]"])
    + each(["f32[T, 8]", "f32[6, 8]", None, "f32[T, 6]"], act="gelu_tanh", scale=0.5, softcap=3.0),
    "rms_norm_add": each(["bf16[T, 8]", "bf16[T, 8]", "f32[8]"], ["f32[T, 8]"] * 2),
    "add_layer_norm": each(["bf16[T, 8]", "bf16[T, 8]", "f32[8]"], ["f32[8]"] * 4),
    "embedding": each(["i32[T]", "bf16[9, 8]"], ["i64[2, T]", "f32[9, 8]"])
    + each(["i32[T]", "f32[9, 8]"], elem=ELEMS["bf16"]),
    "gather": each(["f32[T, 8]", "i32[T, 3]"], ["bf16[8]", "i64[2]"]),
    "last_rows": each(["f32[T, 8]", "seqs[T, S]"], ["i32[T]", "seqs[T, S]"]),
    "scatter": each(["f32[T, 8]", "i32[T, 3]", "f32[T, 3]"], ["bf16[8]", "i64[2]", 1.0]),
    "expert_linear": each(
        ["f32[T, 8]", "i32[T, 2]", "f32[3, 5, 8]"],
        ["bf16[T, 2, 8]", "i64[T, 2]", "f32[3, 5, 8]", "f32[3, 5]"],
    ),
    "moe": each(
        ["bf16[T, 8]", "i32[T, 2]", "f32[T, 2]", "f32[3, 6, 8]", "f32[3, 5, 3]"],
        ["f32[T, 8]", "i32[T, 2]", "f32[T, 2]", "f32[3, 6, 8]", "f32[3, 5, 3]", "f32[3, 6]", "f32[3, 5]"],
        act="gelu_tanh",
    ),
    "head_linear": each(["f32[T, 3, 8]", "f32[3, 5, 8]"], ["bf16[T, 3, 8]", "f32[3, 5, 8]"]),
    "linear": each(["f32[T, 8]", "f32[5, 8]"], ["bf16[2, T, 8]", "f32[5, 8]", "bf16[5]"])
    + each(["f32[8]", "bf16[5, 8]"]),
    "matmul": each(["f32[T, 8]", "f32[8, 3]"], ["bf16[2, T, 8]", "bf16[2, 8, T]"]),
    "rms_norm": each(*MATRIX, ["bf16[T, 8]", "f32[8]"]) + each(["bf16[2, T, 8]", "f32[8]"], groups=4),
    "l2_norm": each(*MATRIX),
    "layer_norm": each(*MATRIX, ["bf16[T, 8]", "f32[8]"], ["f32[T, 8]", "f32[8]", "bf16[8]"])
    + each(["bf16[2, T, 8]", "f32[8]", "f32[8]"], groups=4),
    **{n: each(*MATRIX) for n in ("relu2", "quick_gelu", "mish")},
    "act_mul": each(["bf16[T, 8]", "bf16[T, 8]"], ["f32[T, 1]", "f32[T, 8]"], act="sigmoid"),
    "clamped_silu_mul": each(["bf16[T, 8]", "bf16[T, 8]"], limit=7.0),
    "xielu": each(["bf16[T, 8]", "bf16[1]", "bf16[1]", "bf16[()]", "bf16[()]"]),
    "route": each(["bf16[T, 8]"], ["f32[T, 8]", "f32[8]"], k=3)
    + each(["f32[T, 8]", "f32[8]"], k=2, score="sigmoid", groups=4, top_groups=2, best=2, normalize=True),
    "weighted_sum": each(["bf16[T, 2, 8]", "bf16[T, 2]"], ["bf16[T, 2, 8]", "f32[T, 2]"]),
    **{n: each("f32[T, 8]", "bf16[2, T, 8]", dim=-2) + each("f32[8]", dim=0, keep=False) for n in ("mean",)},
    **{n: each("f32[T, 8]", "i32[8]") + each("i64[T, 8]", dim=0, keep=False) for n in ("amax", "amin")},
    "sum": each("bf16[T, 8]", "i32[8]", "bool[T, 8]") + each("f32[T, 8]", "i8[T, 8]", dim=0, keep=False),
    "softmax": each(*MATRIX),
    "cumsum": each(*MATRIX, *INTEGERS, "bool[T]"),
    "argmax": each(*MATRIX, *INTEGERS),
    "topk": each(*MATRIX, *INTEGERS, k=3),
    "reshape": each("f32[T, 8]", dims=("T", 2, 4)) + each("i32[2, 3]", dims=(6,)),
    "permute": each("f32[T, 2, 8]", dims=(2, 0, 1)),
    "expand": each("f32[T, 1]", dims=(3, "T", 5)) + each("f32[()]", dims=(2,)),
    "slice": each("f32[T, 8]", dim=-1, start=1, stop=8, step=3) + each("i32[T, 8]", dim=0, start=1),
    "concat": each(["f32[T, 8]", "f32[T, 3]", "f32[T, 1]"], dim=1) + each("i32[T]", dim=-1),
    "split": each("f32[T, 8]", dim=-1, sizes=(3, 4, 1)) + each("f32[8]", dim=0, sizes=(8,)),
    "pad": each("f32[T, 8]", dim=0, before=1, after=2, value=7.0)
    + each("i32[T, 8]", dim=-1, after=1, value=-1),
    "arange": each([], stop="T", elem=ELEMS["i32"]) + each([], start=1, stop=8, step=3, elem=ELEMS["f32"]),
    "full": each([], dims=("T", 3), value=-0.5, elem=ELEMS["bf16"])
    + each([], dims=(), value=1, elem=ELEMS["i64"]),
    "positions": each("seqs[T, S]"),
    "rope": each(["bf16[T, 2, 8]", "i32[T]"], ["f32[T, 2, 8]", "i32[T]", "f32[4]"])
    + each(["f32[T, 2, 8]", "i32[T]"], rotary=4, interleaved=True),
    "attention": each([Q, KV, "f32[T, 2, 5]", "seqs[T, S]"], scale=0.3)
    + each([*["bf16[T, 2, 8]"] * 3, "seqs[T, S]", "f32[2]"], scale=0.3, window=2, softcap=5.0)
    + each([Q, KV, KV, "seqs[T, S]", "f32[6]", "f32[6]"], scale=0.3, chunk=4)
    + each([Q, KV, KV, "seqs[T, S]", None, None, "i32[T, 2, 3]"], scale=0.3, block=2),
    "partial_attention": each([Q, KV, KV, "seqs[T, S]", "f32[6]"], scale=0.3, window=3)
    + each([Q, KV, "f32[T, 2, 5]", "seqs[T, S]", None, "i32[T, 3]"], scale=0.3, stride=2),
    "paged_partial_attention": each([Q, WINDOWED, "seqs[T, S]", "f32[6]"], scale=0.3, window=3)
    + each([Q, STRIDED, "seqs[T, S]", None, "i32[T, 3]"], scale=0.3, stride=2, values=8),
    "sparse_index": each(["f32[T, 6, 8]", "bf16[T, 1, 8]", "f32[T, 6]", "seqs[T, S]"], topk=3),
    "paged_sparse_index": each(["f32[T, 6, 8]", KEYS, "f32[T, 6]", "seqs[T, S]"], topk=3, stride=2),
    "block_index": each(["f32[T, 6, 8]", "bf16[T, 1, 8]", "seqs[T, S]"], block=2, topk=3, local=1),
    "paged_block_index": each(
        ["f32[T, 6, 8]", "paged[bf16, 2](values=0)[P, 1, 8]", "seqs[T, S]"], block=2, topk=3
    ),
    "kv_append": each([CACHE, KV, KV, "seqs[T, S]"], [WINDOWED, KV, KV, "seqs[T, S]"])
    + each([LATENTS, KV, None, "seqs[T, S]"], [NARROW, KV, "f32[T, 2, 5]", "seqs[T, S]"]),
    "rope_append": each([Q, KV, KV, CACHE, "i32[T]", "seqs[T, S]"])
    + each([Q, KV, "f32[T, 2, 5]", NARROW, "i32[T]", "seqs[T, S]", "f32[8]", "f32[8]"], eps=1e-6)
    + each([Q, KV, None, LATENTS, "i32[T]", "seqs[T, S]", None, None, "f32[2]"], rotary=4, eps=1e-6),
    "paged_attention": each([Q, CACHE, "seqs[T, S]"], [Q, CACHE, "seqs[T, S]", "f32[6]"], scale=0.3)
    + each([Q, WINDOWED, "seqs[T, S]"], scale=0.3, window=3)
    + each([Q, NARROW, "seqs[T, S]"], scale=0.3)
    + each([Q, LATENTS, "seqs[T, S]"], scale=0.3, values=6),
    **recurrent("causal_conv", ["f32[T, 6]", "f32[6, 4]"], ["f32[6]"], "state[f32, 2][P, 6, 3]"),
    **recurrent("token_shift", ["bf16[T, 2, 8]"], [], "state[bf16, 2][P, 2, 8]"),
    **recurrent("linear_scan", ["bf16[T, 6]", "f32[T, 6]"], [], "state[f32, 2][P, 6]"),
    **recurrent(
        "selective_scan",
        ["bf16[T, 6]", "f32[T, 6]", "f32[6, 3]", "f32[T, 3]", "f32[T, 3]"], [], "state[f32, 2][P, 6, 3]",
    ),
    **recurrent(
        "ssd_scan",
        ["f32[T, 4, 5]", "f32[T, 4]", "f32[4]", "f32[T, 2, 3]", "f32[T, 2, 3]"], [],
        "state[f32, 2][P, 4, 5, 3]",
    ),
    **recurrent(
        "gated_delta",
        ["f32[T, 4, 5]", "f32[T, 4, 5]", "f32[T, 4, 3]", "f32[T, 4, 1]", "f32[T, 4]"], [],
        "state[f32, 2][P, 4, 5, 3]",
    ),
    **recurrent(
        "gated_linear_attention",
        ["f32[T, 4, 5]", "f32[T, 4, 5]", "f32[T, 4, 3]", "f32[T, 4, 5]"], [], "state[f32, 2][P, 4, 5, 3]",
    ),
    **recurrent(
        "mlstm",
        ["f32[T, 4, 5]", "f32[T, 4, 5]", "f32[T, 4, 3]", "f32[T, 4]", "f32[T, 4]"], [],
        "state[f32, 2][P, 4, 5, 5]",
    ),
    **recurrent(
        "block_pool",
        ["f32[T, 2, 4]", "f32[T, 2, 4]", "f32[3, 2, 4]", "i32[T]"], [], "state[f32, 2][P, 5, 2, 2, 4]",
    ),
    **recurrent("wkv", ["f32[T, 6]", "f32[T, 6]", "f32[6]", "f32[6]"], [], "state[f32, 2][P, 3, 6]"),
}  # fmt: skip


GIVEN = {"act_mul", "all_reduce", "bitwise_xor", "cast", "quantize", "scatter", "where"}
"""Ops whose signature says all dims, but not which elements they take, or what an attribute is."""


@pytest.mark.parametrize("op", OWN, ids=lambda op: op.name)
def test_an_op_does_what_is_declared_of_it(op: Op):
    """On the cases above; and where the signature says enough, on random dims."""
    assert op.name in CASES, "an op without a case"
    for given, attrs in CASES[op.name]:
        check_op(op, *given, **attrs)
    if op.operands and op.name not in GIVEN and not re.search(r"_|%", op.signature.text):
        check_op(op)


def test_there_is_no_case_without_an_op():
    assert set(CASES) == {op.name for op in OWN}


@pytest.mark.parametrize("op", OWN, ids=lambda op: op.name)
def test_an_op_is_described(op: Op):
    assert op.doc[0].isupper() or op.doc.startswith("``")
    assert op.doc.splitlines()[0].endswith((".", ":"))


def of_its_kind(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Integers for the op that has no other operands."""
    return (x * 100).int() if op is ops.bitwise_xor else x


@pytest.mark.parametrize("op", [op for op in OWN if op.commutative], ids=lambda op: op.name)
def test_a_commutative_op_may_exchange_its_operands(op: Op):
    g = torch.Generator().manual_seed(1)
    a, b = (of_its_kind(op, x) for x in (torch.randn(7, generator=g), torch.randn(7, generator=g).round()))
    assert op.reference(a, b).equal(op.reference(b, a))


def test_commutative_ops_are_marked():
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(9, generator=g).abs(), torch.randn(9, generator=g).abs()
    texts = ("~b, ~b -> ~b", "+~b, +~b -> +~b")
    binary = [op for op in OWN if op.signature.text in texts and not op.attrs]
    assert len(binary) > 10
    for op in binary:
        x, y = of_its_kind(op, a), of_its_kind(op, b)
        assert op.commutative == op.reference(x, y).equal(op.reference(y, x)), op.name


PRODUCTS: dict[Op, list[str]] = {
    ops.linear: ["f32[T, 8]", "f32[5, 8]", "bf16[5]"],
    ops.linear_act: ["f32[T, 8]", "f32[5, 8]", "bf16[5]", "bf16[T, 5]"],
    ops.head_linear: ["f32[T, 3, 8]", "f32[3, 5, 8]"],
    ops.expert_linear: ["f32[T, 8]", "i32[T, 2]", "f32[3, 5, 8]"],
    ops.moe: ["f32[T, 8]", "i32[T, 2]", "bf16[T, 2]", "f32[3, 6, 8]", "f32[3, 5, 3]"],
}


@pytest.mark.parametrize("op", PRODUCTS, ids=lambda op: op.name)
@pytest.mark.parametrize("to", [TOKEN, GROUPS, WHOLE], ids=str)
def test_a_product_takes_quantized_rows_and_says_what_it_gives(op: Op, to: Quant):
    x, *rest = map(read, PRODUCTS[op])
    check_op(op, x.with_elem(to), *rest, elem=ELEMS["bf16"])
    for rows, elem, said in ((x.with_elem(to), None, "say what it gives"), (x, "bf16", "elem is for rows")):
        given = op.complete({"elem": elem and ELEMS[elem]})
        with pytest.raises(IRError, match=said):
            op.infer([rows, *rest], given)


@pytest.mark.parametrize("elem", [ELEMS["f32"], ELEMS["bf16"]], ids=str)
@pytest.mark.parametrize("to", [TOKEN, GROUPS, WHOLE], ids=str)
def test_rows_are_rounded_to_the_nearest_e4m3_of_their_scale(to: Quant, elem: Elem):
    """Written out: the largest entry that shares a scale is 448 times that."""
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3)).mul(10).to(elem.torch)
    x[2] = 0
    shape = {TOKEN: (5, 1, 8), GROUPS: (5, 2, 4), WHOLE: (1, 1, 40)}[to]
    parts = x.double().reshape(shape)
    scale = parts.abs().amax(-1, keepdim=True) / 448
    want = (parts / scale.where(scale > 0, 1)).float().to(torch.float8_e4m3fn).double() * scale
    got = ops.quantize(x, to=to)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got, want.reshape(5, 8).to(elem.torch))
    torch.testing.assert_close(ops.quantize(got, to=to), got, rtol=2**-7, atol=0)


def test_a_row_that_is_no_number_leaves_its_neighbours_alone():
    x = torch.ones(3, 8)
    x[1, 2], x[2, 0] = float("nan"), float("inf")
    got = ops.quantize(x, to=TOKEN)
    assert got[0].eq(1).all() and got[1:].isnan().all()


# Model ops against independent formulas.


def qkv(tokens: int, heads: int, kv: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, h, dim, generator=g) for h in (heads, kv, kv))


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor) -> torch.Tensor:
    """One sequence through torch's own attention."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention_is_that_of_torch(heads: int, kv: int, window: int | None):
    q, k, v = qkv(9, heads, kv, 8)
    seqs = Seqs.of([5, 1, 3])
    got = ops.attention(q, k, v, seqs, scale=0.3, window=window)
    for a, b in seqs.spans():
        at = torch.arange(b - a)
        mask = at[:, None] >= at
        if window is not None:
            mask &= at[:, None] - at < window
        torch.testing.assert_close(got[a:b], sdpa(q[a:b], k[a:b], v[a:b], 0.3, mask))


def test_softcap_and_sinks_of_attention():
    """Written out for one head and one query that sees all keys."""
    q, k, v = qkv(5, 1, 1, 8)
    sink = torch.tensor([0.7])
    got = ops.attention(q, k, v, Seqs.of([5]), sink, scale=2.0, softcap=1.5)[-1, 0]
    scores = 1.5 * torch.tanh((k[:, 0] @ q[-1, 0]) * 2.0 / 1.5)
    e = scores.exp()
    torch.testing.assert_close(got, (e[:, None] * v[:, 0]).sum(0) / (e.sum() + sink.exp()))


def test_chunks_and_slopes_of_attention():
    """Tokens see their own block of 3 positions; nearer keys get more."""
    q, k, v = qkv(7, 2, 1, 8)
    slopes = torch.tensor([0.5, 0.125])
    at = torch.arange(7)
    away = slopes[:, None, None] * (at - at[:, None])
    seen = (at <= at[:, None]) & (at // 3 == at[:, None] // 3)
    got = ops.attention(q, k, v, Seqs.of([7]), None, slopes, scale=0.3, chunk=3)
    torch.testing.assert_close(got, sdpa(q, k, v, 0.3, away.masked_fill(~seen, float("-inf"))))


@pytest.mark.parametrize("limits", [{}, {"window": 3}, {"chunk": 2}, {"chunk": 4, "window": 3}])
def test_paged_attention_is_attention_over_the_same_tokens(limits: dict[str, int]):
    """Two sequences in chunks of several sizes, their pages in no order."""
    q, k, v = qkv(12, 4, 2, 8)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0])
    window = min(limits.values(), default=None)
    mine, other = range(7), range(7, 12)
    pool = "full" if window is None else f"window {window}"
    table = torch.tensor([[5, 2, 0, 1], [3, 6, 4, 7]], dtype=torch.int32)
    cache = PagedCache.empty(8, 2, 2, 8, torch.float32, pool)
    got = torch.empty_like(q)
    done = [0, 0]
    for step in ([3, 1], [1, 1], [2, 3], [1, 0]):
        at = [[*tokens][d : d + n] for tokens, d, n in zip((mine, other), done, step, strict=True)]
        now = [i for i, n in enumerate(step) if n]
        seqs = Seqs.of([step[i] for i in now], [done[i] for i in now], {pool: table[now]})
        rows = list(itertools.chain(*at))
        cache = ops.kv_append(cache, k[rows], v[rows], seqs)
        got[rows] = ops.paged_attention(q[rows], cache, seqs, None, slopes, scale=0.4, **limits)
        done = [d + n for d, n in zip(done, step, strict=True)]
    assert done == [7, 5]
    whole = ops.attention(q, k, v, Seqs.of(done), None, slopes, scale=0.4, **limits)
    torch.testing.assert_close(got, whole)


def test_a_cache_of_eight_bits_keeps_the_nearest_that_it_can():
    """What is too large is the largest there is, and attention reads it as that."""
    k = torch.tensor([1000.0, -1e6, 448.0, 17.0, 2**-10, 3e-5, 0.0, -5.3]).expand(1, 1, 8)
    want = torch.tensor([448.0, -448.0, 448.0, 16.0, 0.0, 0.0, 0.0, -5.5])
    seqs = Seqs.of([1], tables={"full": torch.tensor([[2, 0]], dtype=torch.int32)})
    for dtype in (torch.float32, torch.bfloat16):
        cache = PagedCache.empty(3, 2, 1, 8, torch.float8_e4m3fn)
        cache = ops.kv_append(cache, k.to(dtype), k.to(dtype), seqs)
        assert cache.k[2, 0, 0].float().equal(want)
        got = ops.paged_attention(torch.ones(1, 1, 8, dtype=dtype), cache, seqs, scale=1.0)
        assert got.dtype == dtype and got[0, 0].float().equal(want)


def test_appending_leaves_the_cache_as_it_was():
    k = torch.ones(4, 2, 8)
    tables = {"full": torch.tensor([[4, 1], [0, 5]], dtype=torch.int32)}
    before = PagedCache.empty(6, 2, 2, 8, torch.float32)
    after = ops.kv_append(before, k, k, Seqs.of([3, 1], tables=tables))
    assert not before.k.any() and not before.v.any()
    assert after.k.sum() == k.numel()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [None, 4])
@pytest.mark.parametrize("given", [False, True])
def test_rope_multiplies_by_a_complex_number(interleaved: bool, rotary: int | None, given: bool):
    g = torch.Generator().manual_seed(3)
    x, at = torch.randn(5, 2, 8, generator=g), torch.tensor([0, 1, 7, 100, 3], dtype=torch.int32)
    n = rotary or 8
    freq = torch.rand(n // 2, generator=g) if given else None
    got = ops.rope(x, at, freq, theta=500.0, rotary=rotary, interleaved=interleaved, scale=1.25)
    turns = freq.double() if freq is not None else 500.0 ** (-2 * torch.arange(n // 2).double() / n)
    turn = torch.polar(torch.full((5, n // 2), 1.25).double(), at.double()[:, None] * turns)[:, None]
    pairs = x[..., :n].double()
    a, b = (
        (pairs[..., 0::2], pairs[..., 1::2]) if interleaved else (pairs[..., : n // 2], pairs[..., n // 2 :])
    )
    z = torch.complex(a, b) * turn
    want = torch.stack([z.real, z.imag], -1).flatten(-2) if interleaved else torch.cat([z.real, z.imag], -1)
    torch.testing.assert_close(got[..., :n], want.float(), rtol=1e-4, atol=1e-4)
    assert got[..., n:].equal(x[..., n:])


def test_norms_are_their_formulas():
    g = torch.Generator().manual_seed(4)
    x, y, w, b = (torch.randn(*d, generator=g) for d in ((3, 8), (3, 8), (8,), (8,)))
    rms = (x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()) * w
    torch.testing.assert_close(ops.rms_norm(x, w, eps=1e-3), rms)
    centred = x - x.mean(-1, keepdim=True)
    layer = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * w + b
    torch.testing.assert_close(ops.layer_norm(x, w, b, eps=1e-3), layer)
    s, n = ops.add_rms_norm(x, y, w, eps=1e-3)
    assert s.equal(x + y) and n.equal(ops.rms_norm(x + y, w, eps=1e-3))
    s, n = ops.add_rms_norm(x, y, w, b, eps=1e-3, inner_eps=0.1)
    assert s.equal(x + ops.rms_norm(y, b, eps=0.1)) and n.equal(ops.rms_norm(s, w, eps=1e-3))
    assert ops.rms_norm_add(x, y, b, eps=0.1).equal(s)
    s, n = ops.add_layer_norm(x, y, w, b, eps=1e-3)
    assert s.equal(x + y) and n.equal(ops.layer_norm(x + y, w, b, eps=1e-3))


def test_fused_activations_are_what_they_replace():
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(3, 8, generator=g), torch.randn(3, 8, generator=g)
    assert ops.silu_mul(a, b).equal(ops.mul(ops.silu(a), b))
    for tanh in (False, True):
        assert ops.gelu_mul(a, b, tanh=tanh).equal(ops.mul(ops.gelu(a, tanh=tanh), b))
    for act in (ops.relu, ops.relu2, ops.quick_gelu, ops.mish, ops.sigmoid, ops.tanh, ops.softplus):
        torch.testing.assert_close(ops.act_mul(a, b, act=act.name), ops.mul(act(a), b))
    torch.testing.assert_close(ops.clamped_silu_mul(a, b, limit=9.0), ops.silu_mul(a, b))
    clamped = ops.clamped_silu_mul(a, b, limit=0.5, alpha=1.702, shift=1.0)
    want = ops.quick_gelu(a.clamp(max=0.5)) * (b.clamp(-0.5, 0.5) + 1)
    torch.testing.assert_close(clamped, want)


def test_groups_are_rows_of_their_own():
    g = torch.Generator().manual_seed(6)
    x, w, b = torch.randn(3, 12, generator=g), torch.randn(12, generator=g), torch.randn(12, generator=g)
    parts = x.reshape(9, 4)
    want = ops.rms_norm(parts).reshape(3, 12) * w
    torch.testing.assert_close(ops.rms_norm(x, w, groups=3), want)
    want = ops.layer_norm(parts).reshape(3, 12) * w + b
    torch.testing.assert_close(ops.layer_norm(x, w, b, groups=3), want)
    torch.testing.assert_close(ops.l2_norm(x, eps=0.0).norm(dim=-1), torch.ones(3))


def test_groups_divide_a_row():
    for norm in (ops.rms_norm, ops.layer_norm):
        with pytest.raises(IRError, match=rf"{norm.name}: 3 groups do not divide the 8 features"):
            norm.infer([Type(ELEMS["f32"], (4, 8))], {"eps": 1e-5, "groups": 3})


def test_rows_of_a_token_are_weighted_and_summed():
    g = torch.Generator().manual_seed(8)
    x, w = torch.randn(3, 2, 8, generator=g), torch.randn(3, 2, generator=g)
    want = x[:, 0] * w[:, :1] + x[:, 1] * w[:, 1:]
    torch.testing.assert_close(ops.weighted_sum(x, w), want)


def test_a_route_chooses_by_score_and_bias_from_the_best_groups():
    x = torch.tensor([[3.0, 0.0, 2.0, 1.9, -1.0, 2.5]])
    weights, index = ops.route(x, k=2)
    assert index.tolist() == [[0, 5]]
    torch.testing.assert_close(weights, x.softmax(-1)[:, [0, 5]])
    bias = torch.tensor([-9.0, 0, 0, 0, 0, 0])
    weights, index = ops.route(x, bias, k=2, score="sigmoid", normalize=True, scale=3.0)
    assert index.tolist() == [[5, 2]]  # the bias chooses, and weighs nothing
    want = x[:, [5, 2]].sigmoid()
    torch.testing.assert_close(weights, 3 * want / want.sum())
    _, index = ops.route(x, by_logits=True, k=2, groups=3, top_groups=1, best=2)
    assert index.tolist() == [[2, 3]]  # 2 + 1.9 is more than 3 + 0 and 2.5 - 1
    chosen, index = ops.route(x, k=3, normalize=True)
    torch.testing.assert_close(chosen, x[:, index[0]].softmax(-1))


@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        ({"score": "tanh"}, "score is 'tanh'"),
        ({"groups": 3}, "1 of 3 groups by their 1 best of the 8 experts"),
        ({"groups": 4, "k": 3}, "3 of 2 experts"),
    ],
)
def test_a_route_that_cannot_be(attrs, said):
    with pytest.raises(IRError, match=said):
        ops.route.infer([Type(ELEMS["f32"], (4, 8))], ops.route.complete({"k": 2, **attrs}))


def test_curvatures_bend_both_sides():
    x, beta, eps = torch.tensor([-2.0, -0.5, 0.0, 3.0]), torch.tensor(0.5), torch.tensor(-1e-6)
    want = [0.7 * (math.exp(-2) + 1) - 1, 0.7 * (math.exp(-0.5) - 0.5) - 0.25, 0.0, 0.8 * 9 + 1.5]
    got = ops.xielu(x, torch.tensor([0.8]), torch.tensor([0.7]), beta, eps)
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=1e-5)


def test_each_head_has_a_matrix():
    g = torch.Generator().manual_seed(7)
    x, weight = torch.randn(6, 3, 8, generator=g), torch.randn(3, 5, 8, generator=g)
    want = torch.stack([x[:, h] @ weight[h].T for h in range(3)], 1)
    torch.testing.assert_close(ops.head_linear(x, weight), want)


@pytest.mark.parametrize("wide", [False, True], ids=["a row per token", "a row per choice"])
def test_each_token_meets_the_experts_it_chooses(wide: bool):
    """A loop over tokens and choices; the index 5 of five experts, and -1, choose none."""
    g = torch.Generator().manual_seed(6)
    x = torch.randn(7, *([3] if wide else []), 8, generator=g)
    weight, bias = torch.randn(5, 4, 8, generator=g), torch.randn(5, 4, generator=g)
    index = torch.randint(-1, 6, (7, 3), generator=g, dtype=torch.int32)
    assert {-1, 5} <= set(index.flatten().tolist())
    want = torch.zeros(7, 3, 4)
    for t, j in itertools.product(range(7), range(3)):
        if 0 <= (e := int(index[t, j])) < 5:
            want[t, j] = weight[e] @ (x[t, j] if wide else x[t]) + bias[e]
    torch.testing.assert_close(ops.expert_linear(x, index, weight, bias), want)


def test_the_cost_of_experts_is_that_of_those_in_use():
    m = parse(
        "def main(x: f32[T, 8], index: i32[T, 2], w: f32[64, 4, 8]):\n"
        "    y = expert_linear(x, index, w)\n    return y\n"
    )
    one, many = (step_cost(m, tokens, 1, tokens) for tokens in (1, 100))
    assert (one.flops, many.flops) == (2 * 2 * 4 * 8, 100 * 2 * 2 * 4 * 8)
    assert one.bytes == 4 * (8 + 2 + 2 * 4 + 2 * 4 * 8)
    assert many.bytes == 4 * (100 * (8 + 2 + 2 * 4) + 64 * 4 * 8)


def test_columns_are_seen_in_place_and_cost_nothing():
    """But every other column, or rows, are copied: read and written once, not the whole operand."""
    costs = {
        "a, b = split(x, dim=-1, sizes=(6, 2))": 0,
        "a = slice(x, dim=1, start=2)": 0,
        "a = slice(x, dim=1, step=2)": 2 * 4 * 10 * 4,
        "a = slice(x, dim=0, stop=5)": 2 * 4 * 5 * 8,
        "a, b = split(x, dim=0, sizes=(4, 6))": 2 * 4 * 10 * 8,
    }
    for node, moved in costs.items():
        m = parse(f"def main(x: f32[10, 8]):\n    {node}\n    return a\n")
        assert step_cost(m, 1, 1, 1).bytes == moved


def test_scatter_writes_along_the_last_dim():
    x, index = torch.zeros(2, 4), torch.tensor([[1, 3], [0, 2]])
    assert ops.scatter(x, index, torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [
        [0, 1, 0, 2],
        [3, 0, 4, 0],
    ]
    assert ops.scatter(x, index, 5.0).sum() == 20


def test_the_last_row_of_each_sequence():
    assert ops.last_rows(torch.arange(9), Seqs.of([5, 1, 3])).tolist() == [4, 5, 8]
    assert ops.positions(Seqs.of([3, 1], past=[0, 7])).tolist() == [0, 1, 2, 7]


def test_opaque_values_are_of_two_kinds():
    assert {str(SEQS), str(CACHES)} == {"seqs", "caches"}
