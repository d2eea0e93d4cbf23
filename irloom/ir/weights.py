"""Weights: running weight expressions on a checkpoint, one tensor at a time.

A pass that folds, joins, splits or rounds weights writes down an expression (``weight_expr``) and touches no
data. The expression is run here, when an engine is built, straight from the mapped files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from irloom.ir.checkpoint import BlockReader, row_steps
from irloom.ir.elem import AnyElem, Elem, Quant, elem_of
from irloom.ir.errors import CheckpointError, IRError
from irloom.ir.types import Type
from irloom.ir.weight_expr import (
    Affine,
    Cast,
    Concat,
    Const,
    Exp,
    Quantize,
    Reshape,
    Scale,
    Slice,
    Tensor,
    Transpose,
    WeightExpr,
    parse_weight,
    show_weight,
    tensor_name,
    tensor_names,
)

if TYPE_CHECKING:
    import torch

    from irloom.ir.checkpoint import Checkpoint
    from irloom.ir.quantized import QuantizedTensor

__all__ = [
    "NO_CONSTS", "Affine", "Binding", "Cast", "Concat", "Const", "Consts", "Exp", "Quantize", "Reshape",
    "Scale", "Slice", "Tensor", "Transpose", "WeightExpr", "expression_blocks", "kept_quantized",
    "materialize", "materialize_all", "parse_weight", "show_weight", "split_rows", "tensor_name",
    "tensor_names", "weight_type",
]  # fmt: skip

Consts = Mapping[str, "torch.Tensor"]
NO_CONSTS: Consts = {}


def materialize(
    expr: WeightExpr,
    checkpoint: Checkpoint,
    index: int | None = None,
    consts: Consts = NO_CONSTS,
    device: torch.device | str = "cpu",
) -> torch.Tensor | QuantizedTensor:
    """Run an expression for layer ``index``. Parts are read one after another, each freed before the next.

    A bare ``weight(...)`` comes back as a mapping of its bytes in the file: no memory until it is read. On
    another ``device`` what is read goes there first, so that all is computed there.
    """
    wanted = weight_type(expr, checkpoint, index, consts)
    source = _Source(checkpoint, index, consts, device)
    if isinstance(expr, Quantize):
        return source.quantize(expr.x, expr.quant)
    out = source.run(expr)
    if tuple(out.shape) != wanted.dims:
        raise CheckpointError(
            f"{checkpoint.path}: {show_weight(expr)} came as {list(out.shape)}, not as {wanted}"
        )
    return out


def expression_blocks(
    expr: WeightExpr, checkpoint: Checkpoint, rows: slice = slice(None)
) -> Iterator[torch.Tensor]:
    """``rows`` of what ``materialize`` returns, some at a time."""
    return _Source(checkpoint, None, NO_CONSTS).blocks(expr, rows)


def kept_quantized(expr: WeightExpr, checkpoint: Checkpoint, quant: Quant) -> QuantizedTensor | None:
    """The value in the scheme ``quant`` where the checkpoint stores every part of it so; else None."""
    return _Source(checkpoint, None, NO_CONSTS).kept(expr, quant)


def weight_type(
    expr: WeightExpr, checkpoint: Checkpoint, index: int | None = None, consts: Consts = NO_CONSTS
) -> Type:
    """The type of what ``materialize`` returns, from names and dims alone: no weight is read."""
    if isinstance(expr, Tensor):
        name = tensor_name(expr.name, index)
        return Type(checkpoint.elem(name), checkpoint.dims(name))
    if isinstance(expr, Const):
        const = _const(expr, consts)
        return Type(elem_of(const.dtype), tuple(const.shape))
    if isinstance(expr, Concat):
        return _concat_type(expr, [weight_type(part, checkpoint, index, consts) for part in expr.parts])
    x = weight_type(expr.x, checkpoint, index, consts)
    if isinstance(expr, Scale):
        return _scale_type(expr, x, weight_type(expr.by, checkpoint, index, consts))
    dims = _ints(x)
    match expr:
        case Slice(_, dim, start, stop) if 0 <= dim < x.rank and 0 <= start < stop <= dims[dim]:
            return x.with_dims((*dims[:dim], stop - start, *dims[dim + 1 :]))
        case Transpose() if x.rank >= 2:
            return x.with_dims((*dims[:-2], dims[-1], dims[-2]))
        case Reshape(_, new) if math.prod(new) == math.prod(dims):
            return x.with_dims(new)
        case Cast(_, elem):
            return x.with_elem(elem)
        case Affine() | Exp() if x.plain.kind == "float":
            return x
        case Quantize(_, quant) if x.plain.kind == "float":
            quant.scale_dims(dims)
            return x.with_elem(quant)
        case _:
            raise IRError(f"{show_weight(expr)}: not for a weight that is {x}")


def _concat_type(expr: Concat, parts: list[Type]) -> Type:
    first, dim = parts[0], expr.dim
    others = {(p.plain, *p.dims[:dim], *p.dims[dim + 1 :]) for p in parts}
    if not 0 <= dim < first.rank or len(others) > 1:
        raise IRError(f"{show_weight(expr)}: parts do not join along dim {dim}: {', '.join(map(str, parts))}")
    total = sum(_ints(p)[dim] for p in parts)
    return first.with_dims((*first.dims[:dim], total, *first.dims[dim + 1 :]))


def _scale_type(expr: Scale, x: Type, by: Type) -> Type:
    fits = 0 <= expr.dim < x.rank and by.dims == x.dims[expr.dim : expr.dim + 1]
    if not fits or {x.plain.kind, by.plain.kind} != {"float"}:
        raise IRError(f"{show_weight(expr)}: {by} does not scale dim {expr.dim} of {x}")
    return x


def _ints(x: Type) -> tuple[int, ...]:
    return tuple(d for d in x.dims if isinstance(d, int))


def _const(expr: Const, consts: Consts) -> torch.Tensor:
    if expr.name not in consts:
        raise IRError(
            f"{show_weight(expr)}: the module has no such constant", hint=f"it has {', '.join(consts)}"
        )
    return consts[expr.name]


@dataclass(frozen=True)
class _Source:
    """Where an expression's tensors come from: a checkpoint, one layer of it, and the module's constants."""

    checkpoint: Checkpoint
    index: int | None
    consts: Consts
    device: torch.device | str = "cpu"

    def type(self, expr: WeightExpr) -> Type:
        return weight_type(expr, self.checkpoint, self.index, self.consts)

    def run(self, expr: WeightExpr) -> torch.Tensor:
        """The whole value: a tensor as its mapping, anything else copied into place block by block."""
        import torch

        match expr:
            case Tensor(name):
                return self.checkpoint.read(tensor_name(name, self.index)).to(self.device)
            case Const():
                return _const(expr, self.consts).to(self.device)
            case Transpose(x):
                return self.run(x).transpose(-1, -2).contiguous()
            case Reshape(x, dims):
                return self.run(x).reshape(dims)
            case _:
                wanted = self.type(expr)
        if not wanted.rank:
            return next(self.blocks(expr))
        out = torch.empty(_ints(wanted), dtype=wanted.plain.torch, device=self.device)
        if isinstance(expr, Concat) and expr.dim:
            at = 0
            for part in expr.parts:
                width = _ints(self.type(part))[expr.dim]
                self.copy(part, out.narrow(expr.dim, at, width))
                at += width
        else:
            self.copy(expr, out)
        return out

    def copy(self, expr: WeightExpr, out: torch.Tensor) -> None:
        """Write the value of ``expr`` into ``out``."""
        done = 0
        for block in self.blocks(expr):
            out[done : done + block.shape[0]] = block
            done += block.shape[0]

    def blocks(self, expr: WeightExpr, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        """``rows`` of the value, some at a time, so that of a large source only a few are ever in memory."""
        match expr:
            case Tensor(name):
                yield from self.stored(tensor_name(name, self.index), rows)
            case Concat(parts, 0):
                yield from self.joined(parts, rows)
            case Slice(x, 0, start, stop):
                low, high, _ = rows.indices(stop - start)
                yield from self.blocks(x, slice(start + low, start + high))
            case Slice() | Cast() | Affine() | Exp():
                for block in self.blocks(expr.x, rows):
                    yield _rowwise(expr, block)
            case Scale():
                yield from self.scaled(expr, rows)
            case Transpose(x) if self.type(x).rank > 2:
                for block in self.blocks(x, rows):
                    yield block.transpose(-1, -2)
            case Quantize():
                raise IRError(
                    f"{show_weight(expr)}: a quantized weight is not an operand", hint="quantize last"
                )
            case _:
                yield from split_rows(self.run(expr), rows)

    def joined(self, parts: tuple[WeightExpr, ...], rows: slice) -> Iterator[torch.Tensor]:
        """``rows`` of parts that lie one below the other."""
        at = 0
        counts = [_ints(self.type(part))[0] for part in parts]
        start, stop, _ = rows.indices(sum(counts))
        for part, count in zip(parts, counts, strict=True):
            low, high = max(start - at, 0), min(stop - at, count)
            if low < high:
                yield from self.blocks(part, slice(low, high))
            at += count

    def scaled(self, expr: Scale, rows: slice) -> Iterator[torch.Tensor]:
        """``rows`` of the operand, times those of the scales that are theirs."""
        wanted, by = self.type(expr), self.run(expr.by).float()
        at, _, _ = rows.indices(_ints(wanted)[0])
        beside = [-1 if dim == expr.dim else 1 for dim in range(wanted.rank)]
        for block in self.blocks(expr.x, rows):
            part = by if expr.dim else by[at : at + block.shape[0]]
            yield block.float().mul(part.reshape(beside)).to(block.dtype)
            at += block.shape[0]

    def stored(self, name: str, rows: slice) -> Iterator[torch.Tensor]:
        """A tensor's rows, some at a time where the checkpoint reads them so, else all at once."""
        if self.checkpoint.dims(name) and isinstance(self.checkpoint, BlockReader):
            yield from (block.to(self.device) for block in self.checkpoint.blocks(name, rows))
        else:
            yield from split_rows(self.checkpoint.read(name).to(self.device), rows)

    def quantize(self, x: WeightExpr, quant: Quant) -> QuantizedTensor:
        """Round, or take the file's own blocks. Parts that share no scale are joined after."""
        from irloom.ir.quantized import concat_quantized, joins, quantize_blocks

        exact = self.kept(x, quant)
        if exact is not None:
            return exact
        if isinstance(x, Concat) and joins(quant, x.dim, [_ints(self.type(part)) for part in x.parts]):
            return concat_quantized([self.quantize(part, quant) for part in x.parts], x.dim)
        return quantize_blocks(self.blocks(x), _ints(self.type(x)), quant)

    def kept(self, x: WeightExpr, quant: Quant) -> QuantizedTensor | None:
        """The file's own blocks, where ``x`` only moves whole rows of tensors stored exactly so."""
        from irloom.ir.quantized import concat_quantized, joins

        rank = self.type(x).rank - (quant.rows != 1)  # of dims whose indices have scales of their own
        match x:
            case Tensor(name):
                found = self.checkpoint.read_quantized(tensor_name(name, self.index), quant)
                return found and found.map(lambda t: t.to(self.device))
            case Concat(parts, dim) if joins(quant, dim, [_ints(self.type(part)) for part in parts]):
                kept: list[QuantizedTensor] = []
                for part in parts:
                    if (blocks := self.kept(part, quant)) is None:
                        return None
                    kept.append(blocks)
                return concat_quantized(kept, dim)
            case Reshape(inner, dims) if quant.rows == 1 and dims[-1:] == self.type(inner).dims[-1:]:
                blocks = self.kept(inner, quant)
                return blocks and blocks.map(lambda t: t.reshape(*dims[:-1], t.shape[-1]))
            case Slice(inner, dim, start, stop) if dim < rank - 1:
                blocks = self.kept(inner, quant)
                return blocks and blocks.map(lambda t: t.narrow(dim, start, stop - start))
            case _:
                return None


def _rowwise(expr: Slice | Cast | Affine | Exp, block: torch.Tensor) -> torch.Tensor:
    """What an expression does to some rows of its operand."""
    match expr:
        case Slice(_, dim, start, stop):
            return block.narrow(dim, start, stop - start)
        case Cast(_, elem):
            return block.to(elem.torch)
        case Affine(_, scale, shift):
            return block.float().mul(scale).add_(shift).to(block.dtype)
        case Exp():
            return block.float().exp().to(block.dtype)


def split_rows(whole: torch.Tensor, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
    """``rows`` of a value that is in memory, in blocks."""
    if not whole.ndim:
        yield whole
        return
    for start, stop in row_steps(tuple(whole.shape), elem_of(whole.dtype), rows):
        yield whole[start:stop]


@dataclass(frozen=True)
class Binding:
    """One weight of a module: a parameter's expression for one layer, and the element it is declared with."""

    name: str
    index: int | None
    expr: WeightExpr
    elem: AnyElem | None = None


def materialize_all(
    bindings: Iterable[Binding],
    checkpoint: Checkpoint,
    sink: Callable[[Binding, torch.Tensor | QuantizedTensor], None],
    consts: Consts = NO_CONSTS,
) -> None:
    """Hand every weight to ``sink``, in the order of the checkpoint's bytes and in its declared element.

    A weight that ``sink`` does not keep is freed when it returns: memory is that of the largest, not of all.
    """
    order = {name: at for at, name in enumerate(checkpoint.names())}

    def place(binding: Binding) -> int:
        return min((order.get(n, len(order)) for n in tensor_names(binding.expr, binding.index)), default=-1)

    for binding in sorted(bindings, key=place):
        expr = binding.expr
        stored = weight_type(expr, checkpoint, binding.index, consts).elem
        if isinstance(binding.elem, Elem) and stored != binding.elem:
            expr = Cast(expr, binding.elem)
        sink(binding, materialize(expr, checkpoint, binding.index, consts))
