"""Every recurrent op of the IR as an op of torch, so that a captured graph keeps it whole.

Tensors with a token dim are the library's ``[1, T, ...]``; operands are those of the IR's op, less ``seqs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.aten.core import tensor, translates
from irloom.frontends.hf.ops import expert_linear
from irloom.frontends.hf.views import View, viewed
from irloom.ir import ops
from irloom.ir.dims import symbols
from irloom.ir.errors import IRError, TraceError
from irloom.ir.op import OPS, Op
from irloom.ir.signature import Term

TOKENS = "t"


def _by_token(term: Term) -> bool:
    return bool(term.axes) and term.axes[0].factors == (TOKENS,)


def _terms(op: Op) -> list[tuple[str, Term]]:
    """Operands and their terms, less ``seqs``."""
    pairs = zip(op.operands, op.signature.ins, strict=True)
    return [(name, term) for name, term in pairs if name != "seqs"]


def register(op: Op) -> Callable[..., Tensor]:
    """The op as ``torch.ops.irloom.NAME``, with its translation back."""
    terms = _terms(op)
    given = [f"Tensor{'?' if term.optional else ''} {name}" for name, term in terms]
    attrs = [f"float {name}={default}" for name, default in op.attrs.items()]
    schema = ", ".join([*given, *(["*", *attrs] if attrs else [])])
    torch.library.define(f"irloom::{op.name}", f"({schema}) -> Tensor")
    (out,) = op.signature.outs

    @torch.library.register_fake(f"irloom::{op.name}")
    def _(*operands: Tensor | None, **_: float) -> Tensor:
        first = operands[0]
        assert first is not None
        return first.new_empty(_dims(out, terms, operands))

    @translates(f"irloom.{op.name}.default")
    def _(*operands: Any, seqs: Any, **attrs: float) -> View:
        return _apply(op, terms, operands, seqs, attrs)

    return getattr(torch.ops.irloom, op.name)


def torch_op(op: Op) -> Callable[..., Any]:
    """An op of the IR as a function of torch tensors, for code that stands in for a block in a trace.

    It takes the op's operands less ``seqs``, with tokens as ``[1, T, ...]``, and has shapes but no kernel: a
    trace computes nothing. There is one for every recurrent op and for ``expert_linear``; what else a block
    needs, attention too, is written in torch.
    """
    if op is ops.expert_linear:
        return expert_linear
    if op.carried is None:
        raise IRError(f"{op.name} is no recurrent op", hint="write it in torch, as any model does")
    if op.name not in RECURRENT:
        RECURRENT[op.name] = register(op)
    return RECURRENT[op.name]


def _dims(
    out: Term, terms: Sequence[tuple[str, Term]], operands: Sequence[Tensor | None]
) -> tuple[int | torch.SymInt, ...]:
    """Dims of a result, batch included: those of an operand like it, or each from the operand that has it."""
    size: dict[tuple[str, ...], int | torch.SymInt] = {}
    for (_, term), x in zip(terms, operands, strict=False):
        if x is None:
            continue
        if term.axes == out.axes:
            return tuple(x.shape)
        own = x.shape[1:] if _by_token(term) else x.shape
        size.update({axis.factors: n for axis, n in zip(term.axes or (), own, strict=False)})
    return (1, *(size[axis.factors] for axis in out.axes or ()))


def _apply(
    op: Op,
    terms: Sequence[tuple[str, Term]],
    operands: Sequence[Any],
    seqs: Any,
    attrs: Mapping[str, float],
) -> View:
    values: list[Any] = []
    for (name, term), x in zip(terms, operands, strict=False):
        if x is None:
            values.append(None)
            continue
        view = tensor(x, f"operand `{name}`")
        values.append(view.arranged(range(1 if _by_token(term) else 0, view.rank)))
    values.insert(op.operands.index("seqs"), seqs)
    out = op(*values, **attrs)
    return viewed(out, range(1, out.type.rank + 1), out.type.rank + 1)


@translates("aten.constant_pad_nd.default")
def constant_pad(x: Any, pads: Sequence[int], value: float = 0.0, *, seqs: Any) -> View:
    """Padding of dims from the last on. One token more in front and one less behind is a token shift."""
    x = tensor(x)
    pairs = [(x.rank - 1 - i // 2, pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
    for d, before, after in pairs:
        if not before and not after:
            continue
        if symbols(x.dims[d]):
            if (before, after, value) != (1, -1, 0.0):
                raise TraceError(f"padding of tokens by {before} and {after} mixes sequences")
            dims = [d, *(i for i in x.memory() if i != d)]
            x = viewed(ops.token_shift(x.arranged(dims), seqs), dims, x.rank)
        else:
            rows, dims = x.with_last(d)
            x = viewed(ops.pad(rows, dim=-1, before=before, after=after, value=value), dims, x.rank)
    return x


@translates("aten.pad.default")
def pad(
    x: Any, pads: Sequence[int], mode: str = "constant", value: float | None = None, *, seqs: Any
) -> View:
    if mode != "constant":
        raise TraceError(f"padding by `{mode}` has no translation", hint="by a constant has one")
    return constant_pad(x, pads, value or 0.0, seqs=seqs)


RECURRENT = {op.name: register(op) for op in OPS if op.carried is not None}
"""Torch ops by the names of the IR's ops."""
