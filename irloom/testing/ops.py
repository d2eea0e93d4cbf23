"""Does the body of an op do what its signature says? It is run on random dims, and asked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from irloom.ir.dims import evaluate
from irloom.ir.elem import Quant
from irloom.ir.errors import IRError
from irloom.ir.interp import resolve
from irloom.ir.op import Op
from irloom.ir.plugins import told
from irloom.ir.types import Type
from irloom.testing.trial import Draw, Trial, elem_of_kernel, free_rows, inferred, written
from irloom.testing.values import BATCHES, Batch, described, expected, show, tensors, values

TOLERANCE = 1e-5
"""Of f32 entries that are made in two ways, as a share: torch sums a row alone in another order."""


def check_op(op: Op, *operands: Any, trials: int = 12, **attrs: Any) -> None:
    """``IRError`` where the body of ``op`` and what is declared of it disagree.

    Results have the inferred number, dims and elements; operands are not written into; a row of free dims
    (``*b``, ``~b``) comes out the same without the others; a commutative op may exchange its first operands;
    costs can be counted. Each is asked ``trials`` times, with a random size for every dim, optional operands
    there and not there, f32 and bf16.

    What a signature leaves open is given: operands as types (``"f32[T, 8]"``, ``"seqs[T, S]"``), numbers or
    None, and attributes, a list where several values are to be tried.

    >>> from irloom.ir.ops import linear, split
    >>> check_op(linear)
    >>> check_op(split, "f32[T, 8]", dim=-1, sizes=[(3, 5), (8,)])
    """
    drawn = Draw(op, attrs, elem_of_kernel(op))
    explicit = operands or not op.operands
    for trial in written(op, operands, attrs) if explicit else drawn.trials(trials):
        for batch in BATCHES:
            _try(trial, batch)


def _try(trial: Trial, batch: Batch) -> None:
    told = [expected(_held(t, trial), batch.env) for t in inferred(trial)]
    args = values(trial.operands, batch)
    before = [[x.clone() for x in tensors(a)] for a in args]
    made = _run(trial, args, batch)
    if told != (found := [described(x) for x in made]):
        said = (", ".join(map(show, x)) for x in (found, told))
        raise _disagrees(trial, "its body makes {}, by its signature it is {}".format(*said))
    for name, was, now in zip(_names(trial), before, map(tensors, args), strict=True):
        if not all(x.equal(y) for x, y in zip(was, now, strict=True)):
            raise _disagrees(trial, f"its body writes into `{name}`", "make a new tensor: no value changes")
    _count(trial, batch)
    _check_rows(trial, args, made, batch)
    if trial.op.commutative:
        swapped = _run(trial, [args[1], args[0], *args[2:]], batch)
        if not all(_same(x, y) for x, y in zip(made, swapped, strict=True)):
            raise _disagrees(trial, "it is not commutative")


def _held(t: Type, trial: Trial) -> Type:
    """A quantized result is by reference what it dequantizes to, in the element of the first operand."""
    x = trial.operands[0] if trial.operands else None
    return t.with_elem(x.elem) if isinstance(t.elem, Quant) and isinstance(x, Type) else t


def _run(trial: Trial, args: Sequence[Any], batch: Batch) -> tuple[Any, ...]:
    attrs: Mapping[str, Any] = {k: resolve(v, batch.env) for k, v in trial.attrs.items()}
    try:
        made = trial.op.reference(*args, **attrs)
    except Exception as error:
        raise _disagrees(
            trial,
            f"its body fails: {told(error).partition(chr(10))[0]}",
            "say in `.verify` what it does not take",
        ) from error
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def _count(trial: Trial, batch: Batch) -> None:
    """What hooks count is a number for every size."""
    for count in (trial.op.count_flops, trial.op.count_bytes):
        hook = f"`.{count.__name__.removeprefix('count_')}`"
        try:
            found = evaluate(count(trial.operands, trial.attrs), batch.env)
        except Exception as error:
            raise _disagrees(trial, f"{hook} raised {told(error)}") from error
        if found < 0:
            raise _disagrees(trial, f"{hook} is less than nothing")


def _check_rows(trial: Trial, args: Sequence[Any], made: Sequence[Any], batch: Batch) -> None:
    """One row of free dims alone."""
    sig = trial.op.signature
    name = free_rows(sig)
    if name is None or "shape" in trial.op.hooks or not all(isinstance(x, torch.Tensor) for x in made):
        return
    free = [bool(t.axes) and t.axes[0].variadic for t in sig.ins]
    ranks = [x.ndim for x in made]
    rows = made[0].shape[0] if ranks[0] >= len(sig.outs[0].axes or ()) else 0
    for row in {0, rows - 1} if rows > 1 else ():
        part = slice(row, row + 1)
        one = [
            a[part]
            if is_free and isinstance(a, torch.Tensor) and a.ndim == _full(trial, at, made[0]) and len(a) > 1
            else a
            for at, (a, is_free) in enumerate(zip(args, free, strict=False))
        ]
        for x, y in zip(made, _run(trial, one, batch), strict=True):
            if not _same(x[part], y):
                why = f"row {row} alone is not what it is among {rows}"
                raise _disagrees(trial, why, f"`{name}` says that rows do not depend on each other")


def _full(trial: Trial, at: int, out: torch.Tensor) -> int:
    """The rank of an operand that has all of the free dims."""
    ins, outs = trial.op.signature.ins[at].axes or (), trial.op.signature.outs[0].axes or ()
    return out.ndim - len(outs) + len(ins)


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    allowed = 0.02 if x.dtype in (torch.bfloat16, torch.float16) else TOLERANCE
    return torch.allclose(x.double(), y.double(), rtol=allowed, atol=allowed, equal_nan=True)


def _names(trial: Trial) -> list[str]:
    named = inspect.signature(trial.op.reference).parameters if trial.op.variadic else trial.op.operands
    return [*named, *(f"operand {k}" for k in range(len(trial.operands)))][: len(trial.operands)]


def _disagrees(trial: Trial, why: str, hint: str = "") -> IRError:
    told = hint or f"signature: {trial.op.signature.text}"
    return IRError(f"{trial.op.name}: {why}", hint=told).at(f"in {trial}").at(f"at {trial.op.place}")
