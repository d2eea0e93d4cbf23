"""Kernels of experts against the ops' bodies in f64, over shapes, elements and ways to run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels import align, expert_ways, experts
from irloom.backends.cuda.kernels.boxed_experts import Boxed
from irloom.backends.cuda.kernels.experts import SILU
from irloom.backends.cuda.kernels.form import Gate
from irloom.backends.cuda.kernels.gather import Gather
from irloom.backends.cuda.kernels.grouped import Tile
from irloom.backends.cuda.kernels.mixture import Mixture, Way
from irloom.backends.cuda.kernels.stack import Stack
from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir import ops
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.quantized import quantize

from .cross import compiled, spilled
from .device import DEVICE

SEEDED = torch.Generator()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
F32, F16, BF16 = TOLERANCE
I4 = Quant("i4g32", ELEMS["i4"], 32, ELEMS["f16"])
U4 = Quant("u4g16", ELEMS["u4"], 16, ELEMS["bf16"], ELEMS["u8"])
I8 = Quant("i8", ELEMS["i8"], 0, ELEMS["f32"])
F8 = Quant("f8", ELEMS["f8e4m3"], 0, ELEMS["f32"])
F8_BLOCKS = Quant("f8b32", ELEMS["f8e4m3"], 32, ELEMS["f32"], rows=24)
F8_TENSOR = Quant("f8t", ELEMS["f8e4m3"], 0, ELEMS["f32"], rows=0)
F8_GROUPS = Quant("f8g32", ELEMS["f8e4m3"], 32, ELEMS["f32"])

ROWS = (Gather(16, 32, 1, 2), Gather(32, 16, 1, 3, 2))
TILES = (Tile(16, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2, swap=True, rest=16))


@dataclass(frozen=True)
class Case:
    """``tokens`` of ``h`` features, the last ``spare`` of which nobody owns, each with ``k`` experts."""

    tokens: int = 4
    k: int = 2
    experts: int = 4
    h: int = 64
    inner: int = 32
    dtype: torch.dtype = F32
    quant: Quant | None = None
    bias: bool = False
    residual: bool = False
    spare: int = 1
    gate: Gate = SILU


def drawn(*dims: int, dtype: torch.dtype = F32, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*dims, generator=SEEDED) * scale).to(DEVICE, dtype)


def stack(case: Case, n: int, k: int) -> tuple[Operand, torch.Tensor]:
    """Matrices of experts as a kernel takes them, and what they stand for in f64."""
    x = torch.randn(case.experts, n, k, generator=SEEDED) * k**-0.5
    if case.quant is None:
        w = x.to(DEVICE, case.dtype)
        return w, w.double()
    q = quantize(x, case.quant)
    zeros = None if q.zeros is None else q.zeros.to(DEVICE)
    w = Quantized(q.packed().to(DEVICE), q.scales.to(DEVICE), zeros, case.quant)
    return w, q.dequantize(ELEMS["f32"]).to(DEVICE, torch.float64)


def chosen(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts of each token, garbage in rows of nobody; one real choice is none. And what that comes to."""
    index = torch.stack(
        [torch.randperm(case.experts, generator=SEEDED)[: case.k] for _ in range(case.tokens)]
    ).int()
    real = case.tokens - case.spare
    index[0, -1] = -1
    meant = index.clone()
    meant[real:] = -1
    index[real:] = torch.randint(-(1 << 30), 1 << 30, (case.spare, case.k), generator=SEEDED).int()
    return index.to(DEVICE), meant.to(DEVICE)


def step(case: Case) -> Step:
    """A step of one sequence with the case's rows."""
    ints = torch.zeros(case.tokens, dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, case.tokens - case.spare], dtype=torch.int32, device=DEVICE)
    return Step(ints, ints, ints, starts, ints[:1], {})


def poisoned(*dims: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(dims, torch.nan, dtype=dtype, device=DEVICE)


def agree(made: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert made.isfinite().all()
    assert (made - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def check(case: Case, way: Way) -> None:
    """Both ops give what their bodies give, and rows of nobody change nothing."""
    real = case.tokens - case.spare
    x = drawn(case.tokens + 1, case.h + 8, dtype=case.dtype)[1:, :-8]  # rows with gaps
    x[real:] = torch.nan
    index, meant = chosen(case)
    weights = torch.rand(case.tokens, case.k, generator=SEEDED).to(DEVICE, case.dtype)
    weights[real:] = torch.nan
    up, up64 = stack(case, 2 * case.inner, case.h)
    down, down64 = stack(case, case.h, case.inner)
    b1 = drawn(case.experts, 2 * case.inner, dtype=case.dtype) if case.bias else None
    b2 = drawn(case.experts, case.h, dtype=case.dtype) if case.bias else None
    residual = drawn(case.tokens, case.h, dtype=case.dtype) if case.residual else None
    out = poisoned(case.tokens, case.h, dtype=case.dtype)
    products = poisoned(case.tokens, case.k, 2 * case.inner, dtype=case.dtype)
    work, at = Workspace(DEVICE), step(case)
    experts.moe(
        out, x, index, weights, up, down, b1, b2, residual, gate=case.gate, work=work, step=at, how=way
    )  # fmt: skip
    if not isinstance(way, Boxed):
        experts.expert_linear(products, x, index, up, b1, work=work, step=at, how=way)
    exact = [None if v is None else v.double() for v in (b1, b2)]
    x64, w64 = (v.double().nan_to_num(0) for v in (x, weights))
    expected = mixed(case.gate, x64, meant, w64, up64, down64, *exact)
    agree(out, expected if residual is None else expected + residual, case.dtype)
    if not isinstance(way, Boxed):
        agree(products, ops.expert_linear.reference(x64, meant, up64, exact[0]), case.dtype)


def mixed(
    gate: Gate,
    x: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
) -> torch.Tensor:
    """What experts come to by the bodies of ops."""
    if not gate.woven:
        return ops.moe.reference(x, index, weights, up, down, up_bias, down_bias, act=gate.act)
    assert gate.limit is not None
    both = ops.expert_linear.reference(x, index, up, up_bias)
    clamp = {"limit": gate.limit, "alpha": gate.alpha, "shift": gate.shift}
    inner = ops.clamped_silu_mul.reference(both[..., ::2], both[..., 1::2], **clamp)
    return ops.weighted_sum.reference(ops.expert_linear.reference(inner, index, down, down_bias), weights)


CASES = {
    "one token": Case(tokens=1, spare=0),
    "awkward sizes": Case(tokens=7, k=3, experts=5, h=40, inner=24, bias=True, gate=Gate("gelu_tanh")),
    "bf16": Case(dtype=BF16, bias=True, residual=True),
    "f16": Case(dtype=F16, residual=True, gate=Gate("relu2")),
    "four bits": Case(dtype=BF16, quant=I4),
    "four bits with zeros": Case(quant=U4, residual=True),
    "int8": Case(dtype=BF16, quant=I8, bias=True),
    "fp8": Case(quant=F8),
    "fp8 in groups": Case(quant=F8_GROUPS),
    "fp8 in blocks": Case(quant=F8_BLOCKS),
    "fp8 with one scale": Case(dtype=BF16, quant=F8_TENSOR),
    "clamped gates between their values": Case(
        dtype=BF16, bias=True, residual=True, gate=Gate(woven=True, limit=1.0, alpha=1.7, shift=1.0)
    ),
    "an expert with many rows": Case(tokens=20, experts=2, h=24, inner=16, spare=3),
}


@pytest.mark.parametrize("name", CASES)
def test_few_tokens(name: str):
    SEEDED.manual_seed(len(name))
    check(CASES[name], ROWS[len(name) % 2])


@pytest.mark.parametrize("name", CASES)
def test_many_tokens(name: str):
    SEEDED.manual_seed(len(name))
    check(CASES[name], TILES[len(name) % 2])


@pytest.mark.parametrize("name", ["bf16", "f16", "clamped gates between their values"])
def test_very_many_tokens(name: str):
    SEEDED.manual_seed(len(name))
    check(replace(CASES[name], tokens=20, inner=40), Boxed(16, 16, 32, 4, 2))


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.integers(1, 9), st.integers(1, 3), st.integers(3, 7), st.integers(1, 50), st.integers(1, 40),
    st.sampled_from([*ROWS, *TILES]), st.booleans(),
)  # fmt: skip
def test_any_shape(
    tokens: int, k: int, count: int, h: int, inner: int, way: Gather | Tile, bias: bool
):  # fmt: skip
    SEEDED.manual_seed(tokens * h)
    check(Case(tokens, k, count, h, inner, bias=bias, spare=min(2, tokens - 1)), way)


def test_inputs_may_differ_by_choice():
    SEEDED.manual_seed(0)
    x, w = drawn(3, 2, 16), drawn(4, 8, 16)
    index = torch.tensor([[0, 3], [2, 1], [3, 9]], dtype=torch.int32, device=DEVICE)
    for way in (ROWS[0], TILES[0]):
        out = poisoned(3, 2, 8, dtype=F32)
        experts.expert_linear(out, x, index, w, work=Workspace(DEVICE), how=way)
        agree(out, ops.expert_linear.reference(x.double(), index, w.double()), F32)


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize("quant", [None, F8])
def test_heads(tokens: int, quant: Quant | None):
    SEEDED.manual_seed(0)
    x = drawn(tokens, 3, 24)
    w, w64 = stack(Case(experts=3, quant=quant), 10, 24)
    out = poisoned(tokens, 3, 10, dtype=F32)
    experts.head_linear(out, x, w, work=Workspace(DEVICE))
    agree(out, ops.head_linear.reference(x.double(), w64), F32)


def test_weighted_sum():
    SEEDED.manual_seed(0)
    x, weights = drawn(3, 4, 40), drawn(3, 4)
    out = poisoned(3, 40, dtype=F32)
    experts.weighted_sum(out, x, weights)
    agree(out, ops.weighted_sum.reference(x.double(), weights.double()), F32)


def test_a_token_alone_is_the_token_in_a_batch():
    SEEDED.manual_seed(0)
    up, down = drawn(4, 64, 64, dtype=BF16), drawn(4, 64, 32, dtype=BF16)
    x, weights = drawn(19, 64, dtype=BF16), torch.rand(19, 2, generator=SEEDED).to(DEVICE, BF16)
    index = torch.stack([torch.randperm(4, generator=SEEDED)[:2] for _ in range(19)]).int().to(DEVICE)

    def run(rows: slice) -> torch.Tensor:
        out = poisoned(len(x[rows]), 64, dtype=BF16)
        experts.moe(
            out, x[rows], index[rows], weights[rows], up, down, work=Workspace(DEVICE), how=TILES[1]
        )  # fmt: skip
        return out

    together = run(slice(None))
    assert torch.equal(run(slice(4, 5)), together[4:5])
    assert torch.equal(run(slice(10, 19)), together[10:])


GROUPED = {
    "out": "*bf16", "x": "*bf16", "rows": "*i32", "owner": "*i32", "choices": "i32", "tiles": "i32",
    "weight": "*bf16",
}  # fmt: skip
QWEN = {
    "bias": None, "scales": None, "zeros": None, "E": 128, "N": 1536, "K": 2048, "KIND": "plain", "BLOCK": 1,
    "GROUP": 2048, "TOP": 8, "ACT": "silu", "WOVEN": False, "LIMIT": None,
    "ALPHA": 1.0, "SHIFT": 0.0, "CHAIN": True,
}  # fmt: skip


@pytest.mark.parametrize("how", [experts.INVARIANT, Tile(128, 256, 64, 8, 4, rest=32)], ids=str)
def test_blocks_go_to_tensor_cores_from_loads_under_way(how: Tile):
    sizes = {
        "BM": how.height,
        "BN": how.rows,
        "BK": how.entries,
        "SWAP": how.swap,
        "WHOLE": False,
        "REST": how.rest,
    }
    given = {**QWEN, **sizes, "row_stride": 2048, "choice_stride": 0}
    made = compiled(
        "irloom.backends.cuda.kernels.grouped", "_grouped", GROUPED, given, num_warps=how.warps,
        num_stages=how.stages,
    )  # fmt: skip
    assert "wgmma.mma_async" in made["ptx"] and "cp.async.cg.shared.global" in made["ptx"]
    assert ".local" not in made["ptx"] and made["shared"] < 228 << 10


def test_rows_are_read_in_whole_words():
    signature = {
        "out": "*bf16", "x": "*bf16", "index": "*i32", "real": "*i32", "row_stride": "i32",
        "choice_stride": "i32", "weight": "*bf16",
    }  # fmt: skip
    given = {**QWEN, "BN": 8, "BK": 1024, "WIDE": 8, "DEPTH": 2, "PARTS": 1}
    made = compiled("irloom.backends.cuda.kernels.gather", "_product", signature, given, num_warps=4)
    assert made["ptx"].count(".v4.b32") >= 8 and "griddepcontrol.wait" in made["ptx"]
    assert ".local" not in made["ptx"]


def test_steps_that_share_a_choice_have_the_same_candidates(monkeypatch: pytest.MonkeyPatch):
    """Else what one of them found would depend on which was first, and the other would be timed again.

    Past some number of tokens all do.
    """
    asked = defaultdict[object, set[Sequence[object]]](set)

    def choose(name: str, key: tuple[object, ...], candidates: Sequence[Any], run: object) -> Any:
        asked[name, key].add(tuple(candidates))
        return candidates[0]

    monkeypatch.setattr(expert_ways, "choose", choose)
    monkeypatch.setattr(expert_ways, "MOST", 128)
    up, down = (torch.zeros(4, *dims, dtype=torch.bfloat16, device=DEVICE) for dims in ((64, 16), (16, 32)))
    mixture = Mixture(Stack(up), Stack(down), None, None, SILU)
    several = 0
    for tokens in (*range(1, 140), 300):
        x = torch.zeros(tokens, 16, dtype=torch.bfloat16, device=DEVICE)
        expert_ways.mixture_ways(mixture, x, x, x[:, :2])
        several = len(asked) if tokens == 128 else several
    assert several == len(asked) > 8 and all(len(candidates) == 1 for candidates in asked.values())


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize(("piece", "parts"), [(256, 64), (32, 3)])
def test_many_choices_are_sorted_as_few_are(
    monkeypatch: pytest.MonkeyPatch, piece: int, parts: int, every: bool
):
    SEEDED.manual_seed(0)
    index = torch.randint(-1, 5, (150, 2), generator=SEEDED).int().to(DEVICE)
    real = torch.tensor([140], dtype=torch.int32, device=DEVICE)

    def sorted_by(**sizes: int) -> align.Blocks:
        for name, size in sizes.items():
            monkeypatch.setattr(align, name, size)
        return align.align(index, real, index.shape, 5, 16, Workspace(DEVICE), every=every)

    one, two = sorted_by(MANY=1 << 20), sorted_by(MANY=0, PIECE=piece, PARTS=parts)
    used = int((one.experts >= 0).sum())
    assert torch.equal(one.experts, two.experts) and used > 5
    assert torch.equal(one.rows[: used * 16], two.rows[: used * 16])


def test_places_of_many_choices_fit_in_registers():
    signature = {
        "rows": "*i32", "owner": "*i32", "counts": "*i32", "before": "*i32", "index": "*i32",
        "choices": "i32", "most": "i32", "k": "i32", "each": "i32", "parts": "i32",
    }  # fmt: skip
    sizes = {"E": 128, "KINDS": 128, "PIECE": align.PIECE, "HEIGHT": 128, "SLAB": 64}
    made = compiled(
        "irloom.backends.cuda.kernels.align", "_place", signature, {"real": None, "CHAIN": True} | sizes,
        num_warps=8,
    )  # fmt: skip
    assert spilled(made["ptx"]) == 0


def test_weights_of_very_many_tokens_come_by_copies():
    signature = {
        "out": "*bf16", "x": "*bf16", "w": "tensordesc<bf16[2, 128, 64]>", "rows": "*i32", "owner": "*i32",
        "choices": "i32", "tiles": "i32", "row_stride": "i32:16",
    }  # fmt: skip
    sizes = {"HALVES": 2, "BM": 128, "BN": 128, "BK": 64}
    given = {k: v for k, v in QWEN.items() if k not in ("scales", "zeros", "E", "KIND", "BLOCK", "GROUP")}
    made = compiled(
        "irloom.backends.cuda.kernels.boxed_experts", "_boxed", signature, given | sizes, num_warps=8,
        num_stages=4,
    )  # fmt: skip
    assert "m64n256k16" in made["ptx"] and "cp.async.bulk.tensor.3d" in made["ptx"]
    assert ".local" not in made["ptx"] and made["shared"] < 228 << 10
