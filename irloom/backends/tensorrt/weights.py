"""Values in memory as TensorRT's API takes them: a type, an address, a count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irloom.ir.elem import Elem

if TYPE_CHECKING:
    import torch

DTYPES = {
    "f32": "FLOAT",
    "f16": "HALF",
    "bf16": "BF16",
    "f8e4m3": "FP8",
    "f8e8m0": "E8M0",
    "f4e2m1": "FP4",
    "i64": "INT64",
    "i32": "INT32",
    "i8": "INT8",
    "i4": "INT4",
    "u8": "UINT8",
    "bool": "BOOL",
}
"""What TensorRT calls an element. It has no others: no f64, no i16, no f8e5m2."""


def data_type(trt: Any, elem: Elem) -> Any:
    """The API's type of an element."""
    return getattr(trt.DataType, DTYPES[elem.name])


def packed(elem: Elem, values: torch.Tensor) -> torch.Tensor:
    """``values`` as an engine keeps them, on the host: four-bit entries two a byte, the low half first."""
    import torch

    values = values.detach().cpu().contiguous()
    if elem.bits != 4:
        return values
    codes = values.reshape(-1).view(torch.uint8)
    if elem.kind == "float":
        size = values.reshape(-1).float()
        grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        codes = torch.bucketize(size.abs(), grid).to(torch.uint8) | (size.signbit().to(torch.uint8) << 3)
    codes = torch.nn.functional.pad(codes & 0xF, (0, codes.numel() % 2))
    return codes[::2] | (codes[1::2] << 4)


def as_weights(trt: Any, elem: Elem, values: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """``values`` for the API, and the memory that they lie in: keep it until the builder is done."""
    held = packed(elem, values)
    return trt.Weights(data_type(trt, elem), held.data_ptr(), values.numel()), held
