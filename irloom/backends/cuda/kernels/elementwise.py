"""A chain of elementwise ops as one kernel, generated from a formula: ``relu(x0) * x1`` over its operands.

A formula is Triton in terms of operands ``x0``, ``x1``, ..., which are f32 where they are floats, and of the
functions of ``curves.py``. Equal formulas over operands that lie alike share a kernel.
"""

from __future__ import annotations

import hashlib
import linecache
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from irloom.backends.cuda.tuning import choose

from . import curves, mode
from .mode import kernel, options, rounded, tl, triton
from .tiles import amount, fresh

BLOCKS = ((1024, 4), (512, 2), (2048, 4), (2048, 8))
"""Entries of a program and its warps, to choose from."""


def elementwise(out: Tensor, *operands: Tensor, formula: str) -> None:
    """``formula`` of ``operands``, each of which broadcasts to ``out``."""
    sizes, strides = merged(out, *operands)
    kinds = tuple("".join(_kind(s) for s in of) for of in strides)
    made = generated(formula, kinds)
    most = max(sum((n - 1) * s for n, s in zip(sizes, of, strict=True)) for of in strides)
    steps = [s for of in strides for s in of if s > 1]
    attrs = {f"N{i}": n for i, n in enumerate(sizes[1:], 1)}
    attrs["WIDE"] = max(most, out.numel()) >= 2**31 - 4096

    def run(block: tuple[int, int], to: Tensor | None) -> None:
        b, warps = block
        grid = (triton.cdiv(out.numel(), b),)
        made[grid](to, *operands, out.numel(), *steps, **attrs, B=b, **options(num_warps=warps))

    key = (formula, kinds, str(out.dtype), *(str(x.dtype) for x in operands), *sizes[1:], amount(out.numel()))
    run(choose("elementwise", key, BLOCKS, lambda block: run(block, fresh(out))), out)


def merged(out: Tensor, *operands: Tensor) -> tuple[list[int], list[list[int]]]:
    """The dims of ``out`` with as many as possible merged, and how it and each operand move along them.

    The first is never left out for being 1, so that steps of one row need no kernel of their own.

    >>> import torch
    >>> wide = torch.empty(5, 16)
    >>> merged(torch.empty(5, 2, 4), wide[:, :8].view(5, 2, 4), torch.empty(1, 2, 4))
    ([5, 8], [[8, 1], [16, 1], [0, 1]])
    """
    seen = [x.expand(out.shape) for x in (out, *operands)]
    dims = [i for i, n in enumerate(out.shape) if i == 0 or n > 1]
    sizes, strides = [], [[] for _ in seen]
    for i in dims:
        steps = [x.stride(i) if x.shape[i] > 1 or i == 0 else 0 for x in seen]
        if sizes and all(of[-1] == step * out.shape[i] for of, step in zip(strides, steps, strict=True)):
            sizes[-1] *= out.shape[i]
            for of, step in zip(strides, steps, strict=True):
                of[-1] = step
            continue
        sizes.append(out.shape[i])
        for of, step in zip(strides, steps, strict=True):
            of.append(step)
    return sizes or [1], [of or [0] for of in strides]


def _kind(stride: int) -> str:
    return {0: "-", 1: "1"}.get(stride, "s")


@dataclass(frozen=True)
class Source:
    """A kernel's text. ``kinds``: how its result and each operand move along each dim, not (``-``), by 1, by
    ``s``.
    """

    formula: str
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        """Equal kernels have one name."""
        return f"chain_{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        tensors = [f"p{i}" for i in range(len(self.kinds))]
        steps = [f"s{i}_{d}" for i, kind in enumerate(self.kinds) for d, k in enumerate(kind) if k == "s"]
        dims = range(1, max(map(len, self.kinds), default=1))
        fixed = [f"{n}: tl.constexpr" for n in (*(f"N{d}" for d in dims), "WIDE", "B", "CHAIN")]
        places = self.places(len(dims))
        loads = [f"x{i} = seen(tl.load({self.at(i + 1)}))" for i in range(len(self.kinds) - 1)]
        lines = [
            "go_on(CHAIN)",
            "at = first(WIDE) * B + tl.arange(0, B)",
            "live = at < count",
            *places,
            "wait(CHAIN)",
            *loads,
            f"y = {self.formula}",
            self.store(),
        ]
        head = f"def {self.name}({', '.join([*tensors, 'count', *steps, *fixed])}):\n"
        return head + "".join(f"    {line}\n" for line in lines)

    def places(self, inner: int) -> list[str]:
        """Where each entry is along each dim: ``i0``, ``i1``, ..."""
        if not inner:
            return ["i0 = at"]
        lines, rest = [], "at"
        for d in range(inner, 0, -1):
            lines += [f"i{d} = {rest} % N{d}", f"r{d} = {rest} // N{d}"]
            rest = f"r{d}"
        return [*lines, f"i0 = {rest}"]

    def at(self, i: int) -> str:
        """Where entries of the ``i``-th tensor lie, and which of them there are."""
        steps = enumerate(self.kinds[i])
        terms = [f"i{d}" if k == "1" else f"i{d} * s{i}_{d}" for d, k in steps if k != "-"]
        place = " + ".join([f"p{i}", *terms])
        return f"{place}, mask=live" if terms else place

    def store(self) -> str:
        """What writes the result ``y``."""
        place, *mask = self.at(0).split(", ")
        return f"tl.store({', '.join([place, 'stored(y, p0.dtype.element_ty)', *mask])})"


@cache
def generated(formula: str, kinds: tuple[str, ...]) -> Any:
    """The kernel of a formula. Triton reads its source as if it lay in a file."""
    source = Source(formula, kinds)
    text, file = str(source), f"<{source.name}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    names = {**vars(mode), **vars(curves), **globals()}
    exec(compile(text, file, "exec"), names)  # noqa: S102 (written above, of ops that have a formula)
    return kernel(names[source.name])


@kernel
def first(WIDE: tl.constexpr):
    """The number of this program, in i64 where entries are too many for less."""
    program = tl.program_id(0)
    return program.to(tl.int64) if WIDE else program


@kernel
def seen(x):
    """Entries as formulas have them: f32 where they are floats, i1 for truth."""
    return x.to(tl.float32) if x.dtype.is_floating() else x


@kernel
def stored(x, to: tl.constexpr):
    """Entries as ``out`` has them."""
    if x.dtype.is_floating() and (to == tl.bfloat16 or to == tl.float16 or to == tl.float32):
        return rounded(x, to)
    else:
        return x.to(to)
