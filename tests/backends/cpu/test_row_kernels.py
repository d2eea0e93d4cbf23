"""Norms, rope, elementwise tails, look-ups: against torch in float64, rows independent of their batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from irloom.backends.cpu.native import ELEMS, Kernels

NAN = float("nan")
SIZES = [(1, 1), (3, 15), (2, 64), (70, 257), (9, 640)]


def normal(seed: int, *dims: int) -> Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed))


def rms(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if w is None else y * w


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half = cos.shape[1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)
    a, b = turned[..., :half], turned[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


@pytest.mark.parametrize(("t", "n"), SIZES)
def test_norms(kernels: Kernels, t: int, n: int) -> None:
    x, a, w, b, wa = normal(1, t, n), normal(2, t, n), normal(3, n), normal(4, n), normal(5, n)
    y, r = torch.full_like(x, NAN), torch.full_like(x, NAN)
    kernels.rms_norm(x, w, y, 1e-6)
    torch.testing.assert_close(y.double(), rms(x.double(), w, 1e-6), rtol=2e-6, atol=2e-6)
    kernels.rms_norm(x, None, y, 1e-6)
    torch.testing.assert_close(y.double(), rms(x.double(), None, 1e-6), rtol=2e-6, atol=2e-6)
    kernels.layer_norm(x + 3, w, b, y, 1e-5)
    want = F.layer_norm((x + 3).double(), (n,), w.double(), b.double(), 1e-5)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    kernels.add_rms_norm(x, a, r, w, y, 1e-6)
    assert torch.equal(r, x + a)
    torch.testing.assert_close(y.double(), rms(r.double(), w, 1e-6), rtol=2e-6, atol=2e-6)
    kernels.add_rms_norm(x, a, r, w, y, 1e-6, wa=wa)
    torch.testing.assert_close(r.double(), x.double() + rms(a.double(), wa, 1e-6), rtol=2e-6, atol=2e-6)
    for i in range(min(t, 3)):
        alone, sum_alone = torch.full((1, n), NAN), x[i : i + 1].clone()
        kernels.add_rms_norm(sum_alone, a[i : i + 1].clone(), sum_alone, w, alone, 1e-6, wa=wa)
        assert torch.equal(alone[0], y[i])
        assert torch.equal(sum_alone[0], r[i])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("t", "heads", "dim", "rotary"), [(1, 4, 64, 64), (5, 3, 80, 20), (70, 2, 256, 256)])
def test_rope_with_and_without_a_norm(
    kernels: Kernels, t: int, heads: int, dim: int, rotary: int, interleaved: bool
) -> None:
    positions = torch.arange(t, dtype=torch.int32) * 37 + 5
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, rotary, 2) / rotary)
    cos, sin = torch.full((t, rotary // 2), NAN), torch.full((t, rotary // 2), NAN)
    kernels.rope_table(positions, inv_freq, cos, sin, 1.25)
    angle = positions[:, None].float() * inv_freq
    torch.testing.assert_close(cos, angle.cos() * 1.25, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin, angle.sin() * 1.25, rtol=1e-6, atol=1e-6)
    qkv, w = normal(6, t, 3 * heads * dim), normal(7, dim)
    x = qkv[:, heads * dim : 2 * heads * dim].view(t, heads, dim)  # rows further apart than they are long
    y = torch.full((t, heads, dim), NAN)
    want = rotated(x.double(), cos.double(), sin.double(), interleaved)
    kernels.rope(x, cos, sin, y, interleaved=interleaved)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    want = rotated(rms(x.double(), w, 1e-6), cos.double(), sin.double(), interleaved)
    kernels.rope(x, cos, sin, y, w=w, eps=1e-6, interleaved=interleaved)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    kernels.rope(x, cos, sin, x, w=w, eps=1e-6, interleaved=interleaved)
    assert torch.equal(x, y)


@pytest.mark.parametrize("elem", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("norm", "weights"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("t", "dim", "rotary", "interleaved"), [(1, 64, 64, False), (9, 80, 20, True)])
def test_rope_append_is_what_its_parts_do(
    kernels: Kernels,
    t: int,
    dim: int,
    rotary: int,
    interleaved: bool,
    norm: bool,
    weights: bool,
    elem: torch.dtype,
) -> None:
    """To the last bit; of one packed row, a token whose page is not held left out."""
    heads, kv, wide = 4, 2, 48
    row = normal(20, t, (heads + kv) * dim + kv * wide)
    q, k, v = row.split([heads * dim, kv * dim, kv * wide], 1)
    q, k, v = q.unflatten(1, (heads, dim)), k.unflatten(1, (kv, dim)), v.unflatten(1, (kv, wide))
    wq, wk = (normal(i, dim) if weights else None for i in (21, 22))
    cos, sin = normal(23, t, rotary // 2), normal(24, t, rotary // 2)
    slots = torch.randperm(t + 7, generator=torch.Generator().manual_seed(25))[:t]
    slots[t // 2] = -1 if t > 1 else 3
    caches = [[torch.full((4, 4, kv, d), 7.0, dtype=elem) for d in (dim, wide)] for _ in range(2)]
    want, turned, got = torch.empty(t, heads, dim), torch.empty(t, kv, dim), torch.full((t, heads, dim), NAN)
    for x, w, y in ((q, wq, want), (k, wk, turned)):
        if norm:
            normed = x.clone()
            for h in range(x.shape[1]):
                kernels.rms_norm(x[:, h], w, normed[:, h], 1e-6)
            x = normed
        kernels.rope(x, cos, sin, y, interleaved=interleaved)
    kernels.kv_append(turned, v, caches[0][0], caches[0][1], slots)
    kernels.raw.rope_append(
        *(a for x in (q, k, v) for a in (x.data_ptr(), x.stride(0))),
        norm, *(0 if w is None else w.data_ptr() for w in (wq, wk)), cos.data_ptr(), sin.data_ptr(),
        got.data_ptr(), got.stride(0), *(c.data_ptr() for c in caches[1]), ELEMS[elem], slots.data_ptr(),
        t, heads, kv, dim, wide, rotary, interleaved, 1e-6,
    )  # fmt: skip
    assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(*caches, strict=True))
    assert (caches[0][0] != 7).any()


REFERENCES = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "mish": F.mish,
    "softplus": F.softplus,
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_activations(kernels: Kernels, kind: str) -> None:
    """Over the whole range of inputs, the extremes too; columns of one buffer, an odd width."""
    both = torch.cat(
        [
            normal(8, 6, 2000) * 3,
            normal(9, 6, 2000) * 40,
            torch.tensor([[0.0, -0.0, 100.0, -100.0, 3e38, -3e38, 1e-6, -1e-30, 88.8, -88.8]] * 6),
        ],
        1,
    )
    up = normal(10, *both.shape)
    y = torch.full_like(both, NAN)
    want = REFERENCES[kind](both.double())
    kernels.act_mul(kind, both, None, y)
    torch.testing.assert_close(y.double(), want.float().double(), rtol=2e-6, atol=1.2e-6)
    kernels.act_mul(kind, both, up, both)
    torch.testing.assert_close(both.double(), (want.float() * up).double(), rtol=2e-6, atol=2e-6)


def test_activations_keep_nan(kernels: Kernels) -> None:
    x, y = torch.full((1, 19), NAN), torch.zeros(1, 19)
    for kind in REFERENCES:
        kernels.act_mul(kind, x, None, y)
        assert y.isnan().all(), kind


def test_gather_copy(kernels: Kernels) -> None:
    x = normal(11, 20, 90)
    y = torch.full((3, 40), NAN)
    kernels.gather_rows(x[:, 5:45], torch.tensor([19, 0, 7], dtype=torch.int32), y)
    assert torch.equal(y, x[[19, 0, 7], 5:45])
    z = torch.full((20, 45), NAN)
    kernels.copy(x[:, 45:], z)
    assert torch.equal(z, x[:, 45:])


@pytest.mark.parametrize("n", [1, 37, 70001, 262144])
def test_argmax_is_the_first_of_the_largest(kernels: Kernels, n: int) -> None:
    x = normal(12, 4, n)
    x[0, n // 2] = x[0, n - 1] = 9.0
    x[1] = float("-inf")
    x[2, n // 3] = NAN
    out = torch.full((4,), -1)
    kernels.argmax(x, out)
    assert torch.equal(out, x.argmax(-1) if n == 1 else torch.tensor([n // 2, 0, n // 3, int(x[3].argmax())]))


def test_slots(kernels: Kernels) -> None:
    """Tokens of a chunk go behind what the cache holds; a page that is gone takes nothing."""
    starts, context = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([5, 9], dtype=torch.int32)
    table = torch.tensor([[7, 2, 0], [-1, -1, 4]], dtype=torch.int32)
    slots, positions = torch.full((4,), -9), torch.zeros(4, dtype=torch.int32)
    kernels.slots(starts, context, table, 4, slots, positions)
    assert positions.tolist() == [2, 3, 4, 8]
    assert slots.tolist() == [30, 31, 8, 16]
    context[1] = 4
    kernels.slots(starts, context, table, 4, slots)
    assert slots[3] == -1
