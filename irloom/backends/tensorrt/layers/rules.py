"""Rules that many layers share: element types, axes, broadcasting."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from irloom.ir.dims import Dim

from ..network import Layer, Tensor

FLOATS = ("f32", "f16", "bf16")
INTS = ("i32", "i64")
NUMBERS = (*FLOATS, *INTS)
PLAIN = (*NUMBERS, "bool")  # what is moved about; u8 is only cast
QUANTIZED = (
    "i8",
    "i4",
    "f8e4m3",
    "f4e2m1",
)  # what is dequantized, and before that joined or reshaped at most

OPERATORS = "docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators"
GUIDE = "docs.nvidia.com/deeplearning/tensorrt/latest/inference-library"


def allow(layer: Layer, role: str, t: Tensor, elems: Collection[str]) -> None:
    """Refuse ``t`` where its element is not among ``elems``."""
    if t.elem.name not in elems:
        raise layer.refuse(f"{role} is {t.elem}, not one of {', '.join(elems)}")


def same_elem(layer: Layer, *tensors: Tensor) -> None:
    """Refuse inputs of different elements: networks are strongly typed, nothing is converted."""
    if len({t.elem for t in tensors}) > 1:
        raise layer.refuse(f"inputs are {' and '.join(str(t.elem) for t in tensors)}, not of one type")


def at_least(layer: Layer, t: Tensor, rank: int) -> None:
    """Refuse ``t`` where it has fewer dims than ``rank``."""
    if len(t.dims) < rank:
        raise layer.refuse(f"{t} has fewer than {rank} dims")


def axis_of(layer: Layer, axis: int, rank: int) -> int:
    """``axis`` counted from the front."""
    if not -rank <= axis < rank:
        raise layer.refuse(f"axis {axis} of {rank} dims")
    return axis % rank


def axes_mask(axes: Sequence[int], rank: int) -> int:
    """Axes as the bits that the API takes."""
    return sum(1 << (a % rank) for a in set(axes))


def broadcast(layer: Layer, *tensors: Tensor) -> tuple[Dim, ...]:
    """The dims of all together: equal ranks, and dims that are equal or 1."""
    if len({len(t.dims) for t in tensors}) != 1:
        raise layer.refuse(f"ranks {', '.join(str(len(t.dims)) for t in tensors)} differ")
    out = list(tensors[0].dims)
    for t in tensors[1:]:
        for i, d in enumerate(t.dims):
            if d != out[i] and 1 not in (d, out[i]):
                raise layer.refuse(f"{' and '.join(map(str, tensors))} do not broadcast")
            out[i] = d if out[i] == 1 else out[i]
    return tuple(out)


def with_dim(t: Tensor, axis: int, dim: Dim) -> tuple[Dim, ...]:
    """The dims of ``t`` with another one at ``axis``."""
    return (*t.dims[:axis], dim, *t.dims[axis + 1 :])
