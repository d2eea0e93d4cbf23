"""Reading rows by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dims import Dim, product
from ..elem import AnyElem, Elem, Quant
from ..errors import IRError
from ..op import Attrs, op
from ..seqs import Seqs
from ..signature import Operand
from ..types import Type


@op("*b, %v d -> *b d")
def embedding(ids: Tensor, table: Tensor, *, elem: Elem | None = None) -> Tensor:
    """Row ``ids[i]`` of ``table`` for each token, in ``elem`` (which a quantized table cannot give)."""
    rows = F.embedding(ids, table)
    return rows if elem is None else rows.to(elem.torch)


@embedding.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    table, elem = operands[1], attrs["elem"]
    assert isinstance(table, Type)
    if isinstance(table.elem, Quant) and elem is None:
        raise IRError(f"embedding: operand `table` is {table}, quantized", hint="say what rows are: elem=f32")
    return elem if isinstance(elem, Elem) else table.elem


@embedding.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    ids, table = operands[0], operands[1]
    assert isinstance(ids, Type) and isinstance(table, Type)
    row = table.elem.nbytes((1, *table.dims[1:]))
    return ids.nbytes + product(ids.dims) * row * 2


@op("*b %v, *b n -> *b n")
def gather(x: Tensor, index: Tensor) -> Tensor:
    """``x[..., index[..., j]]``: pick entries along the last dim."""
    return torch.gather(x, -1, index.long())


@op("*b !v, *b n, ~s -> *b !v")
def scatter(x: Tensor, index: Tensor, src: Tensor | float) -> Tensor:
    """``x`` with ``x[..., index[..., j]] = src[..., j]`` along the last dim; ``src`` may be one number.

    Of equal indices any one wins.
    """
    given = src if isinstance(src, Tensor) else torch.tensor(src)
    return x.scatter(-1, index.long(), given.to(x.dtype, copy=True).expand(index.shape))


@scatter.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    index, src = operands[1:3]
    if isinstance(index, Type) and index.plain.kind not in ("int", "uint"):
        raise IRError(f"scatter: operand `index` is {index}", hint="it holds places in the last dim of `x`")
    if isinstance(index, Type) and isinstance(src, Type) and src.dims not in ((), index.dims):
        raise IRError(f"scatter: operand `src` is {src}, but operand `index` is {index}")


@op("%t *b, %t s -> s *b")
def last_rows(x: Tensor, seqs: Seqs) -> Tensor:
    """The last row of each sequence: what the next token is sampled from."""
    return x[seqs.starts[1:].long() - 1]


@last_rows.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """The rows that are taken, read and written."""
    x, seqs = operands[0], operands[1]
    assert isinstance(x, Type) and isinstance(seqs, Type)
    return x.elem.nbytes((seqs.dims[1], *x.dims[1:])) * 2
