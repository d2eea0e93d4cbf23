"""The largest entries and the shares of rows, against the ops' bodies."""

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels import reduce
from irloom.ir import ops

from .device import DEVICE

SEEDED = torch.Generator()

ROWS = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])


def rows(count: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows with gaps, no two entries of which are equal."""
    SEEDED.manual_seed(count * n)
    x = torch.stack([torch.randperm(n + 3, generator=SEEDED) for _ in range(count)]).to(DEVICE, torch.float32)
    return ((x - n / 2) / 64).to(dtype)[:, :n]


@ROWS
@given(st.integers(1, 3), st.integers(1, 300), st.data())
def test_topk(count: int, n: int, data: st.DataObject):
    k = data.draw(st.integers(1, min(n, 9)))
    x = rows(count, n)
    values = torch.full((count, k), torch.nan, device=DEVICE)
    index = torch.full((count, k), -7, dtype=torch.int32, device=DEVICE)
    reduce.topk(values, index, x, k=k)
    expected = ops.topk.reference(x, k=k)
    assert torch.equal(values, expected[0]) and torch.equal(index, expected[1])


@ROWS
@given(st.integers(1, 3), st.integers(1, 9000))
def test_argmax(count: int, n: int):
    x = rows(count, n)
    out = torch.full((count,), -7, dtype=torch.int32, device=DEVICE)
    reduce.argmax(out, x)
    assert torch.equal(out, ops.argmax.reference(x))


def test_the_first_of_equals():
    out = torch.empty(1, dtype=torch.int32, device=DEVICE)
    reduce.argmax(out, torch.tensor([[1.0, 3.0, -0.0, 3.0]], device=DEVICE))
    assert out.tolist() == [1]


@ROWS
@given(st.integers(1, 3), st.integers(1, 5000), st.booleans())
def test_softmax(count: int, n: int, masked: bool):
    x = rows(count, n)
    if masked and n > 1:
        x[:, : n // 2] = -torch.inf
    out = torch.full((count, n), torch.nan, device=DEVICE)
    reduce.softmax(out, x)
    torch.testing.assert_close(out, torch.softmax(x.double(), -1).float(), rtol=1e-5, atol=1e-7)
