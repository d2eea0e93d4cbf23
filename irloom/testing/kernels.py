"""Does a C++ kernel compute what the body of its op does? Both run on rows as awkward as an engine's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import torch

from irloom.backends.core import quiet
from irloom.backends.cpu.backend import library
from irloom.backends.cpu.extern import KERNELS, Kernel, extern_calls
from irloom.backends.cpu.step import Count, Rows
from irloom.ir.dims import evaluate
from irloom.ir.elem import Elem
from irloom.ir.errors import KernelError
from irloom.ir.op import Op
from irloom.ir.types import Type
from irloom.testing.trial import Draw, Trial, elem_of_kernel
from irloom.testing.values import Batch, values

SIZES = (1, 2, 3, 8, 16, 33, 64, 100)
"""Of dims: less than a vector of the machine, whole ones, and one and a bit."""

BATCHES = (Batch((1,), 1), Batch((5, 2), 2), Batch((70,), 3))
Call = Callable[..., None]


def check_kernel(op: Op, *, trials: int = 6, tolerance: float = 2e-5, **attrs: Any) -> None:
    """``KernelError`` where the C++ kernel of ``op`` and its body disagree.

    Results are the body's within ``tolerance``, as a share of the largest entry; rows lie with gaps between
    them, and gaps and operands stay as they were; every entry of a result is written; and a row has the same
    bits alone, among others, and on two threads. ``trials`` times with random dims, optional operands there
    and not there; ``attrs`` as in ``check_op``.
    """
    if op.name not in KERNELS:
        raise KernelError(f"op {op.name} has no kernel", hint="irloom.backends.cpu.kernel gives it one")
    drawn = Draw(op, attrs, elem_of_kernel(op), SIZES, anywhere=False)
    kernels = library(quiet)
    (call,) = extern_calls(kernels, [op.name]).values()
    threads = kernels.threads
    try:
        for at, trial in enumerate(drawn.trials(trials)):
            for batch in BATCHES:
                kernels.set_threads(1)
                alone = _Run(KERNELS[op.name], call, trial, batch, Random(at))
                alone.check(tolerance)
                kernels.set_threads(2)
                alone.repeat("on two threads")
    finally:
        kernels.set_threads(threads)


class _Run:
    """One call of a kernel on memory with gaps, and what the body makes of the same."""

    def __init__(self, k: Kernel, call: Call, trial: Trial, batch: Batch, random: Random) -> None:
        self.kernel, self.call, self.trial, self.batch = k, call, trial, batch
        self.args = values(trial.operands, batch)
        self.given = [
            _laid(x, t.rows, random) if isinstance(x, torch.Tensor) else None
            for t, x in zip(k.head.tensors, self.args, strict=False)
        ]
        made = trial.op.reference(*self.args, **trial.attrs)
        self.wanted: Sequence[torch.Tensor] = made if isinstance(made, tuple | list) else (made,)
        types = trial.op.infer(trial.operands, trial.attrs)
        self.outs = [_laid(_poison(t, batch), True, random) for t in types]
        self.rows = self.wanted[0].shape[0]
        self.numbers = {**self._sizes(), **{a.name: trial.attrs[a.name] for a in k.head.attributes}}
        lead = len(types[0].dims) - len(trial.op.signature.outs[0].axes or ())
        inner = types[0].dims[1 : 1 + lead] if not k.head.entries else ()
        self.parts = math.prod(evaluate(d, batch.env) for d in inner)

    def _sizes(self) -> Mapping[str, int]:
        if self.kernel.head.entries:
            return {self.kernel.head.row: self.wanted[0][0].numel()}
        known = self.trial.op.bind(self.trial.operands, self.trial.attrs).size
        return {name: evaluate(known.get(name, 0), self.batch.env) for name in self.kernel.head.sizes}

    def check(self, tolerance: float) -> None:
        """The results, what lies around them, and each row alone."""
        before = [None if x is None else x.base.clone() for x in self.given]
        self._call(self.given, self.outs)
        for t, x, was in zip(self.kernel.head.tensors, self.given, before, strict=False):
            if x is not None and was is not None and not _equal(x.base, was):
                raise self._wrong(f"it writes into operand `{t.name}`")
        for t, out, want in zip(self._names(), self.outs, self.wanted, strict=True):
            self._compare(t, out.tensor(), want, tolerance)
            if not bool(_is_poison(_gaps(out)).all()):
                raise self._wrong(f"it writes beside the rows of `{t}`")
        for row in range(min(self.rows, 8)):
            mine = [None if x is None else _row(x, row, t.rows) for t, x in self._operands()]
            self._again(mine, slice(row, row + 1), f"row {row} alone is not what it is among {self.rows}")

    def repeat(self, where: str) -> None:
        """The same bits once more."""
        self._again(self.given, slice(None), f"its results differ {where}")

    def _again(self, given: Sequence[Rows | None], rows: slice, why: str) -> None:
        had = [out.tensor()[rows].clone() for out in self.outs]
        new = [_laid(torch.full_like(x, _POISON[x.dtype]), True, Random(0)) for x in had]
        self._call(given, new)
        if not all(_equal(x, y.tensor()) for x, y in zip(had, new, strict=True)):
            raise self._wrong(why, "an output is summed in one order, whatever other rows there are")

    def _call(self, given: Sequence[Rows | None], outs: Sequence[Rows]) -> None:
        self.call(*given, *outs, parts=self.parts, **self.numbers)

    def _operands(self) -> list[tuple[Any, Rows | None]]:
        return list(zip(self.kernel.head.tensors, self.given, strict=False))

    def _names(self) -> list[str]:
        return [t.name for t in self.kernel.head.tensors if t.made]

    def _compare(self, name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
        unwritten = _is_poison(got) & ~_is_poison(want.to(got.dtype))
        if bool(unwritten.any()):
            count = f"{int(unwritten.sum())} of {got.numel()} entries"
            raise self._wrong(f"it leaves {count} of `{name}` as they were")
        a, b = want.double(), got.double()
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(math.inf)
        size = a[a.isfinite()].abs()
        worst = gap.max().item() / (size.max().item() or 1.0) if size.numel() else gap.max().item()
        if worst > (tolerance if got.is_floating_point() else 0):
            at = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
            raise self._wrong(
                f"`{name}` at {at} is {b[at].item():.7g}, by the body {a[at].item():.7g}: "
                f"error {worst:.3g} of the largest, allowed {tolerance:.3g}"
            )

    def _wrong(self, why: str, hint: str = "") -> KernelError:
        said = KernelError(f"op {self.trial.op.name}: its C++ kernel is not its body: {why}", hint=hint)
        return said.at(f"in {self.trial} with T = {self.batch.env['T']}").at(f"at {self.kernel.place}")


_POISON = {torch.float32: math.nan, torch.int32: -(1 << 30), torch.int64: -(1 << 60), torch.bool: False}


def _is_poison(x: torch.Tensor) -> torch.Tensor:
    return x.isnan() if x.is_floating_point() else (x == _POISON[x.dtype]) & (x.dtype != torch.bool)


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    """The same bits, NaN too."""
    return torch.equal(x.nan_to_num(1e30), y.nan_to_num(1e30)) if x.is_floating_point() else torch.equal(x, y)


def _poison(t: Type, batch: Batch) -> torch.Tensor:
    assert isinstance(t.elem, Elem)
    return torch.full([evaluate(d, batch.env) for d in t.dims], _POISON[t.elem.torch], dtype=t.elem.torch)


def _laid(x: torch.Tensor, rows: bool, random: Random) -> Rows:
    """``x`` in memory of its own: rows with gaps between them and in front, or all together."""
    width = math.prod(x.shape[1:])
    stride, offset = (width + random.choice([0, 1, 7]), random.choice([0, 3])) if rows else (width, 0)
    base = torch.full((offset + x.shape[0] * stride if x.ndim else 1,), _POISON[x.dtype], dtype=x.dtype)
    out = Rows(base, (Count("T", x.shape[0]) if rows else x.shape[0], *x.shape[1:]), offset, stride)
    out.tensor().copy_(x)
    return out


def _row(x: Rows, at: int, rows: bool) -> Rows:
    return Rows(x.base, (Count("", 1), *x.dims[1:]), x.offset + at * x.stride, x.stride) if rows else x


def _gaps(x: Rows) -> torch.Tensor:
    """The entries of its memory that no row holds."""
    mine = torch.ones_like(x.base, dtype=torch.bool)
    Rows(mine, x.dims, x.offset, x.stride).tensor().fill_(False)
    return x.base[mine]
