"""Rows by index: plain and quantized tables, ids that are none, sequences that only fill a bucket."""

import pytest
import torch

from irloom.backends.cuda.kernels.embedding import embedding, last_rows
from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.backends.cuda.step import Step
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.quantized import QuantizedTensor, quantize
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.near import assert_near, normal, poisoned

IDS = [3, 0, 10, 7, -1, 99]
ROWS = [3, 0, 10, 7, 0, 10]  # what is no id gives the first row or the last


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_tables(dtype: torch.dtype) -> None:
    table, out = normal(1, 11, 70, dtype=dtype), poisoned(2, 3, 70, dtype=dtype)
    embedding(out, ints(*IDS).view(2, 3), table)
    assert torch.equal(out.view(6, 70), table[ROWS])


@pytest.mark.parametrize(
    ("base", "group", "zero"), [("i8", 0, None), ("i4", 32, None), ("u4", 16, "f16"), ("f8e4m3", 0, None)]
)
def test_quantized_tables(base: str, group: int, zero: str | None) -> None:
    quant = Quant("table", ELEMS[base], group, ELEMS["f16"], None if zero is None else ELEMS[zero])
    table: QuantizedTensor = quantize(normal(1, 11, 96).cpu(), quant)
    zeros = None if table.zeros is None else table.zeros.to(DEVICE)
    given: Operand = Quantized(table.packed().to(DEVICE), table.scales.to(DEVICE), zeros, quant)
    out = poisoned(6, 96)
    embedding(out, ints(*IDS), given)
    assert_near(out, table.dequantize()[ROWS].to(DEVICE))


@pytest.mark.parametrize(("group", "rows"), [(0, 1), (0, 0), (32, 4)])
def test_tables_whose_rows_share_scales(group: int, rows: int) -> None:
    """One by one, all of them, or those of a block."""
    quant = Quant("table", ELEMS["f8e4m3"], group, ELEMS["f32"], rows=rows)
    table: QuantizedTensor = quantize(normal(1, 11, 96).cpu(), quant)
    out = poisoned(6, 96)
    embedding(out, ints(*IDS), Quantized(table.values.to(DEVICE), table.scales.to(DEVICE), None, quant))
    assert_near(out, table.dequantize()[ROWS].to(DEVICE))


def test_last_rows_of_ragged_sequences() -> None:
    """Two sequences of three and one, one that fills the bucket, and a row of nobody."""
    x, out = normal(1, 5, 4, 30)[:, 1:3], poisoned(3, 2, 30)
    none = ints()
    last_rows(out, x, Step(ints(0, 0, 0, 0, 0), none, none, ints(0, 3, 4, 4), ints(3, 1, 0), {}))
    assert torch.equal(out[:2], x[[2, 3]])
