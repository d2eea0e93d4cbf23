"""Kernels of experts and routers: against the ops' bodies, and rows independent of their batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from irloom.backends.cpu.native import ACTIVATIONS, SCORES, Kernels
from irloom.backends.cpu.pack import Kind, Layout, Packed
from irloom.backends.cpu.weights import packed_bytes
from irloom.ir import ops
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.ops.router import SCORES as OP_SCORES
from irloom.ir.quantized import quantize

EXPERTS, TOP = 5, 3
KINDS: tuple[Kind, ...] = ("f32", "bf16", "i8", "i4")


def normal(seed: int, *dims: int) -> Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed))


def stack(kind: Kind, n: int, k: int, seed: int, bias: Tensor | None = None) -> tuple[Packed, Tensor]:
    """Random experts as a kernel reads them, and as the numbers that they mean."""
    given = normal(seed, EXPERTS, n, k) / k**0.5
    if kind in ("i8", "i4"):
        rounded = quantize(given, Quant("q", ELEMS[kind], 32, ELEMS["f16"]))
        layout = Layout(n, k, kind, 32, "f16", stack=EXPERTS)
        return Packed(
            layout, packed_bytes(rounded, layout), bias, int8_activations=False
        ), rounded.dequantize()
    stored, layout = given.to(ELEMS[kind].torch), Layout(n, k, kind, stack=EXPERTS)
    return Packed(layout, packed_bytes(stored, layout), bias), stored.float()


def choices(tokens: int) -> Tensor:
    """Experts of each token; those below 0 and from ``EXPERTS`` on choose none."""
    g = torch.Generator().manual_seed(tokens)
    return torch.randint(-1, EXPERTS + 1, (tokens, TOP), generator=g, dtype=torch.int32)


def expert_linear(kernels: Kernels, w: Packed, x: Tensor, index: Tensor) -> Tensor:
    y = torch.full((*index.shape, w.layout.n), float("nan"))
    kernels.raw.expert_linear(
        w.address, w.layout.stack, w.layout.each, x.data_ptr(), x.stride(0), x.ndim - 2, index.data_ptr(),
        TOP, TOP, y.data_ptr(), y.stride(0), len(x),
    )  # fmt: skip
    return y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wide", [False, True], ids=["a row per token", "a row per choice"])
@pytest.mark.parametrize(("t", "n", "k"), [(1, 48, 64), (70, 23, 96)])
def test_products(kernels: Kernels, kind: Kind, wide: bool, t: int, n: int, k: int) -> None:
    bias = normal(3, EXPERTS, n)
    packed, weight = stack(kind, n, k, 1, bias)
    x, index = normal(2, t, *([TOP] if wide else []), k), choices(t)
    got = expert_linear(kernels, packed, x, index)
    torch.testing.assert_close(got, ops.expert_linear(x, index, weight, bias), atol=2e-5, rtol=2e-5)
    for i in range(min(t, 4)):
        alone = expert_linear(kernels, packed, x[i : i + 1].clone(), index[i : i + 1].clone())
        assert torch.equal(alone[0], got[i])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("t", "n", "k"), [(1, 48, 64), (70, 23, 96)])
def test_products_of_heads(kernels: Kernels, kind: Kind, t: int, n: int, k: int) -> None:
    """Heads are columns of wider rows, such as those of queries that come with more than this."""
    packed, weight = stack(kind, n, k, 1)
    x, y = normal(2, t, EXPERTS * k + 5), torch.full((t, EXPERTS * n + 3), float("nan"))
    kernels.raw.head_linear(
        packed.address, EXPERTS, packed.layout.each, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), t
    )
    heads = x[:, : EXPERTS * k].reshape(t, EXPERTS, k)
    got = y[:, : EXPERTS * n].reshape(t, EXPERTS, n)
    torch.testing.assert_close(got, ops.head_linear(heads, weight), atol=2e-5, rtol=2e-5)
    assert y[:, EXPERTS * n :].isnan().all()


def moe(
    kernels: Kernels, act: int, up: Packed, down: Packed, x: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    y = torch.full((len(x), down.layout.n), float("nan"))
    kernels.raw.moe(
        act, up.address, up.layout.each, down.address, down.layout.each, EXPERTS, x.data_ptr(), x.stride(0),
        index.data_ptr(), TOP, weights.data_ptr(), TOP, TOP, y.data_ptr(), y.stride(0), len(x),
    )  # fmt: skip
    return y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("t", "n", "k"), [(1, 32, 64), (70, 64, 40)])
@pytest.mark.parametrize(("act", "name"), [("silu", "silu"), ("gelu", "gelu_erf")])
def test_gated_experts(kernels: Kernels, kind: Kind, t: int, n: int, k: int, act: str, name: str) -> None:
    k = k if kind in ("f32", "bf16") else 64
    (up, gate_up), (down, back) = stack(kind, 2 * n, k, 1), stack(kind, k, n, 2, normal(3, EXPERTS, k))
    x, index, weights = normal(4, t, k), choices(t), normal(5, t, TOP).abs()
    got = moe(kernels, ACTIVATIONS.index(name), up, down, x, index, weights)
    want = ops.moe(x, index, weights, gate_up, back, None, down.bias, act=act)
    torch.testing.assert_close(got, want, atol=3e-5, rtol=3e-5)
    for i in range(min(t, 3)):
        one = (y[i : i + 1].clone() for y in (x, index, weights))
        assert torch.equal(moe(kernels, ACTIVATIONS.index(name), up, down, *one)[0], got[i])


@pytest.mark.parametrize(("t", "n"), [(1, 1), (3, 15), (2, 64), (300, 257)])
def test_rows_of_scores(kernels: Kernels, t: int, n: int) -> None:
    x = normal(6, t, n)
    y, total = torch.empty_like(x), torch.empty(t)
    kernels.raw.softmax(x.data_ptr(), n, y.data_ptr(), n, t, n)
    torch.testing.assert_close(y, torch.softmax(x, -1), atol=1e-6, rtol=3e-6)
    kernels.raw.sums(x.data_ptr(), n, 0, 0, total.data_ptr(), 1, t, 1, n, 1, 1.0)
    torch.testing.assert_close(total.double(), x.double().sum(-1), atol=1e-5, rtol=1e-5)
    k = min(n, 6)
    values, index = torch.empty(t, k), torch.empty(t, k, dtype=torch.int32)
    kernels.raw.topk(x.data_ptr(), n, values.data_ptr(), k, index.data_ptr(), k, t, n, k)
    want, at = torch.topk(x, k)
    assert torch.equal(values, want)
    assert torch.equal(index, at.int())


def test_masked_scores(kernels: Kernels) -> None:
    """What is masked weighs nothing; of equals the first is chosen."""
    x = torch.tensor([[-torch.inf, 1.0, -torch.inf, 3.0], [0.0, 2.0, 2.0, 0.0]])
    y, values, index = torch.empty_like(x), torch.empty(2, 3), torch.empty(2, 3, dtype=torch.int32)
    kernels.raw.softmax(x.data_ptr(), 4, y.data_ptr(), 4, 2, 4)
    torch.testing.assert_close(y, torch.softmax(x, -1))
    kernels.raw.topk(x.data_ptr(), 4, values.data_ptr(), 3, index.data_ptr(), 3, 2, 4, 3)
    assert index.tolist() == [[3, 1, 0], [1, 2, 0]]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"normalize": True, "scale": 2.5},
        {"groups": 4, "top_groups": 2, "best": 2},
        {"groups": 4, "top_groups": 1},
        {"by_logits": True},
    ],
    ids=lambda how: ", ".join(how) or "plain",
)
def test_routes(kernels: Kernels, score: str, how: dict[str, Any]) -> None:
    attrs = ops.route.complete({"k": TOP, "score": score, **how})
    for biased, t in ((False, 70), (True, 1)):
        x, bias = normal(5, t, 20), normal(6, 20) if biased else None
        weights, index = torch.full((t, TOP), float("nan")), torch.full((t, TOP), -1, dtype=torch.int32)
        form = [attrs[n] for n in ("by_logits", "groups", "top_groups", "best", "normalize", "scale")]
        kernels.raw.route(
            x.data_ptr(), 20, 0 if bias is None else bias.data_ptr(), weights.data_ptr(), TOP,
            index.data_ptr(), TOP, t, 20, TOP, SCORES.index(score), *form,
        )  # fmt: skip
        want, chosen = ops.route(x, bias, **attrs)
        assert index.equal(chosen)
        torch.testing.assert_close(weights, want, atol=2e-6, rtol=2e-5)


def test_scores_are_those_of_the_op() -> None:
    assert set(SCORES) == set(OP_SCORES)
