"""Reductions along one dim, and what sorts or accumulates along one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..elem import ELEMS, AnyElem, Elem
from ..errors import IRError
from ..op import Attrs, Op, op
from ..signature import Operand
from ..types import Type


@op("_ -> _")
def sum_(x: Tensor, *, dim: int = -1, keep: bool = True) -> Tensor:
    """The sum along ``dim``; ``keep`` leaves it as a dim of size 1."""
    return x.sum(dim, keepdim=keep)


@op("_ -> _")
def mean(x: Tensor, *, dim: int = -1, keep: bool = True) -> Tensor:
    """The mean along ``dim``."""
    return x.mean(dim, keepdim=keep)


@op("_ -> _")
def amax(x: Tensor, *, dim: int = -1, keep: bool = True) -> Tensor:
    """The largest entry along ``dim``."""
    return x.amax(dim, keepdim=keep)


@op("_ -> _")
def amin(x: Tensor, *, dim: int = -1, keep: bool = True) -> Tensor:
    """The smallest entry along ``dim``."""
    return x.amin(dim, keepdim=keep)


def _place(operands: Sequence[Operand], attrs: Attrs, name: str) -> tuple[Type, int]:
    x, dim = operands[0], attrs["dim"]
    if not isinstance(x, Type) or not isinstance(dim, int) or not -x.rank <= dim < x.rank:
        raise IRError(f"{name}: dim {dim} of {x} does not exist")
    d = dim % x.rank
    if x.axes[d]:
        raise IRError(
            f"{name}: dim {d} of {x} is split over `{x.axes[d]}`", hint="all_gather it before this op"
        )
    return x, d


def _summed(elem: AnyElem) -> AnyElem:
    """Sums of integers and of truths are counted in i64."""
    return elem if not isinstance(elem, Elem) or elem.kind == "float" else ELEMS["i64"]


def _reduces(of: Op) -> None:
    def shape(operands: Sequence[Operand], attrs: Attrs) -> Type:
        x, d = _place(operands, attrs, of.name)
        kept = (1,) if attrs["keep"] else ()
        axis = (None,) if attrs["keep"] else ()
        out = x.with_dims((*x.dims[:d], *kept, *x.dims[d + 1 :]), (*x.axes[:d], *axis, *x.axes[d + 1 :]))
        return out.with_elem(_summed(x.elem)) if of is sum_ else out

    of.shape(shape)


def _along(of: Op) -> None:
    of.verify(lambda operands, attrs: _place(operands, attrs, of.name) and None)


for _op in (sum_, mean, amax, amin):
    _reduces(_op)


@op("*b !d -> *b !d")
def softmax(x: Tensor, *, dim: int = -1) -> Tensor:
    """``exp(x) / sum(exp(x))`` along the last dim."""
    return torch.softmax(x, dim)


@op("*b !d -> *b !d")
def cumsum(x: Tensor, *, dim: int = -1) -> Tensor:
    """The running sum along the last dim."""
    return x.cumsum(dim)


for _op in (softmax, cumsum):
    _along(_op)
cumsum.dtype(lambda operands, attrs: _summed(operands[0].elem))


@op("*b !d -> *b")
def argmax(x: Tensor) -> Tensor:
    """The index of the largest entry along the last dim; the first of equals."""
    return x.argmax(-1).int()


@argmax.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return ELEMS["i32"]


@op("*b !d -> *b k, *b k")
def topk(x: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest entries along the last dim, largest first, and their indices."""
    values, indices = torch.topk(x, k)
    return values, indices.int()


@topk.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    x, k = operands[0], attrs["k"]
    if isinstance(x, Type) and x.dims and isinstance(n := x.dims[-1], int) and isinstance(k, int) and k > n:
        raise IRError(f"topk: the last dim of {x} has no {k} entries")


@topk.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> tuple[AnyElem, ...]:
    x = operands[0]
    assert isinstance(x, Type)
    return x.elem, ELEMS["i32"]
