"""Packed linears: against float64, and a row alone against the same row in a batch."""

import pytest
import torch
from torch import Tensor

from irloom.backends.cpu.native import Kernels
from irloom.backends.cpu.pack import Packed, pack, pack_quantized

# T, N, K: one row and many, N no multiple of a panel, more k than one block of the inner loops.
SHAPES = [(1, 1, 32), (1, 37, 96), (2, 16, 64), (7, 100, 160), (13, 333, 2144), (49, 52, 1056)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SCHEMES = [(4, 32, torch.float16), (4, 64, torch.float32), (8, 32, torch.bfloat16), (8, 0, torch.float32)]


def normal(seed: int, *dims: int) -> Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed))


def run(kernels: Kernels, weight: Packed, x: Tensor, residual: Tensor | None = None) -> Tensor:
    y = torch.full((x.shape[0], weight.layout.n), float("nan"))
    kernels.linear(weight, x, y, residual)
    return y


def near(got: Tensor, x: Tensor, w: Tensor, added: Tensor | float = 0.0, tolerance: float = 1e-6) -> None:
    """``got`` is ``x @ w.T + added`` as exactly as sums of such magnitudes can be."""
    x, w = x.double(), w.double()
    error = (got - (x @ w.T + added)).abs() / ((x.abs() @ w.abs().T) + abs(added) + 1e-30)
    assert error.max() <= tolerance, f"error {error.max():.1e} of the magnitudes summed"


def quantized(seed: int, n: int, k: int, bits: int, group: int, scale: torch.dtype, zeros: bool = False):
    """Integers, scales, zero points, and the float64 values they mean."""
    g = torch.Generator().manual_seed(seed)
    top = 1 << (bits - 1)
    q = torch.randint(-top, top, (n, k), dtype=torch.int8, generator=g)
    groups = -(-k // (group or k))
    s = (torch.rand(n, groups, generator=g) * 0.1 + 0.01).to(scale)
    z = torch.randint(-top, top, (n, groups), dtype=torch.int8, generator=g) if zeros else None

    def spread(t: Tensor) -> Tensor:
        return t.double().repeat_interleave(group or k, 1)[:, :k]

    return q, s, z, (q.double() - (spread(z) if z is not None else 0)) * spread(s)


def round_activations(x: Tensor) -> Tensor:
    """What int8 activations mean: each 32 values to the nearest of 255 levels."""
    t, k = x.shape
    blocks = torch.nn.functional.pad(x, (0, -k % 32)).view(t, -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 127 / blocks.abs().amax(-1, keepdim=True), 0)
    return ((blocks * inverse).round() * scale).view(t, -1)[:, :k]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("t", "n", "k"), [*SHAPES, (3, 17, 5), (5, 40, 2049)])
def test_float_weights_equal_float64(kernels: Kernels, t: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, w, bias, residual = normal(1, t, k), normal(2, n, k).to(dtype), normal(3, n), normal(4, t, n)
    near(run(kernels, pack(w), x), x, w)
    near(run(kernels, pack(w, bias), x, residual), x, w, bias + residual)


@pytest.mark.parametrize(("bits", "group", "scale"), SCHEMES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("t", "n", "k"), SHAPES)
def test_low_bit_weights_equal_float64(kernels, t, n, k, zeros, bits, group, scale) -> None:
    """Exact with fp32 activations; with int8 activations, equal to the product of the rounded ones."""
    if group and k % group:
        k += group - k % group
    q, s, z, meant = quantized(5, n, k, bits, group, scale, zeros)
    x, bias = normal(6, t, k), normal(7, n)
    for int8 in (False, True):
        weight = pack_quantized(q, s, z, bits=bits, group=group or k, bias=bias, int8_activations=int8)
        near(run(kernels, weight, x), round_activations(x) if int8 else x, meant, bias)


def test_unsigned_values(kernels: Kernels) -> None:
    q, s, z, meant = quantized(8, 33, 64, 4, 32, torch.float16, zeros=True)
    assert z is not None
    lifted = pack_quantized(q + 8, s, z + 8, bits=4, group=32, signed=False, int8_activations=False)
    near(run(kernels, lifted, x := normal(9, 4, 64)), x, meant)


def weights(n: int, k: int) -> list[Packed]:
    made = [pack(normal(2, n, k).to(dtype)) for dtype in FLOATS]
    for bits, group, scale in SCHEMES:
        for int8 in (False, True):
            q, s, z, _ = quantized(5, n, k, bits, group, scale, zeros=bits == 4 and group == 64)
            made.append(pack_quantized(q, s, z, bits=bits, group=group or k, int8_activations=int8))
    return made


@pytest.mark.parametrize(("n", "k"), [(70, 2112), (640, 192)])
def test_a_row_does_not_depend_on_its_batch(kernels: Kernels, n: int, k: int) -> None:
    """The same bits alone, in any chunk, and on one thread or two."""
    x = normal(10, 61, k)
    for weight in weights(n, k):
        whole = run(kernels, weight, x)
        for t0, t1 in [(0, 1), (60, 61), (3, 10), (0, 24), (17, 61)]:
            assert torch.equal(run(kernels, weight, x[t0:t1]), whole[t0:t1]), weight.layout
        kernels.set_threads(1)
        assert torch.equal(run(kernels, weight, x), whole)
        kernels.set_threads(2)


def test_strided_rows_and_a_residual_in_place(kernels: Kernels) -> None:
    x, w = normal(11, 9, 200)[:, 40:104], normal(12, 30, 64)
    y = normal(13, 9, 50)
    before = y.clone()
    kernels.linear(pack(w), x, y[:, 10:40], y[:, 10:40])
    near(y[:, 10:40], x, w, before[:, 10:40])
    assert torch.equal(y[:, :10], before[:, :10])
    assert torch.equal(y[:, 40:], before[:, 40:])


def test_rows_past_one_run_of_the_outer_loop(kernels: Kernels) -> None:
    """Many rows of a deep weight are cut into runs; a cut shows nowhere."""
    x, w = normal(14, 150, 65536), normal(15, 3, 65536)
    whole = run(kernels, pack(w), x)
    near(whole, x, w, tolerance=1e-5)
    assert torch.equal(run(kernels, pack(w), x[100:101]), whole[100:101])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_activation_shows(kernels: Kernels, bad: float) -> None:
    """Rounding to int8 must not turn a NaN into a number."""
    x = normal(16, 2, 64)
    x[1, 40] = bad
    for weight in weights(20, 64)[3:]:
        y = run(kernels, weight, x)
        assert y[0].isfinite().all()
        assert not y[1].isfinite().any()


def test_rows_of_a_packed_weight_are_its_embeddings(kernels: Kernels) -> None:
    """One copy serves the tied table: exact values, out of range ids show as NaN."""
    ids = torch.tensor([0, 17, 36, 5, 17, -1, 37], dtype=torch.int32)
    picked = ids[:5].long()
    for dtype in FLOATS:
        w, y = normal(17, 37, 65).to(dtype), torch.full((7, 65), float("nan"))
        kernels.embedding(pack(w), ids, y, 3.0)
        assert torch.equal(y[:5], w[picked].float() * 3.0)
        assert y[5:].isnan().all()
    for bits, group, scale in SCHEMES:
        q, s, z, meant = quantized(18, 37, 128, bits, group, scale, zeros=bits == 8)
        y = torch.full((7, 128), float("nan"))
        kernels.embedding(pack_quantized(q, s, z, bits=bits, group=group or 128), ids, y)
        assert torch.equal(y[:5], meant[picked].float())


def test_infinite_weights_and_f16_subnormals_come_through(kernels: Kernels) -> None:
    w = torch.tensor([[float("inf"), 6e-8, -5.9e-5, 65504.0, -0.0, 1.0]] * 2).half()
    y = torch.zeros(1, 6)
    kernels.embedding(pack(w), torch.zeros(1, dtype=torch.int32), y)
    assert torch.equal(y[0], w[0].float())
