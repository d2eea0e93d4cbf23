"""How kernels run here: compiled for the GPU, or in Triton's interpreter where there is none.

The interpreter runs a kernel program by program in numpy: slow, and it sees every mistake but those of the
compiler. So everything above the kernels is the same on a machine without a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, and when a kernel is made

import triton
import triton.language as tl
from triton.language.extra import cuda

from .keys import in_order

INTERPRETED = tl.constexpr(not torch.cuda.is_available())
"""Whether kernels run in Triton's interpreter."""

CHAINED: bool = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9
"""Whether kernels are launched before the one in front of them has ended (programmatic dependent launch)."""


def kernel(fn: Any, varying: Sequence[str] = ()) -> Any:
    """Makes a kernel, or a function that kernels call; for the interpreter where there is no GPU.

    As on a GPU, nothing is said of overflows and NaN: what a kernel makes of padding may be anything.
    """
    made: Any = in_order(triton.jit(do_not_specialize=varying)(fn))
    if INTERPRETED:
        made.run = _quietly(made.run)
    return made


def varying(*names: str) -> Callable[[Any], Any]:
    """Makes a kernel that is compiled once for all values of the numbers ``names``: those that differ from
    step to step, or from engine to engine. Of others it is known whether they are 1, or divisible by 16.
    """
    return lambda fn: kernel(fn, names)


def _quietly(run: Any) -> Any:
    """``run`` with no word of numpy's."""

    def quiet(*args: Any, **options: Any) -> None:
        with numpy.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            run(*args, **options)

    return quiet


def _index_scalars() -> None:
    """Bounds of loops may be computed: the interpreter has scalars as arrays of one entry, which numpy 2.4
    takes for no index.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _keep_masks() -> None:
    """A scalar that is compared stays a mask where it meets a block: newer ones make a number of it."""
    from triton.runtime import interpreter

    splat = interpreter.InterpreterBuilder.create_splat

    def create_splat(self: Any, ret_ty: Any, arg: Any) -> Any:
        made = splat(self, ret_ty, arg)
        if arg.data.dtype == numpy.bool_:
            made.data = made.data.astype(numpy.bool_)
        return made

    interpreter.InterpreterBuilder.create_splat = create_splat


if INTERPRETED:
    _index_scalars()
    _keep_masks()


def options(**more: Any) -> dict[str, Any]:
    """Keyword arguments of every launch: ``CHAIN`` for the kernel, and what makes the launch dependent.

    >>> "CHAIN" in options(num_warps=4)
    True
    """
    return {"CHAIN": CHAINED, **more} | ({"launch_pdl": True} if CHAINED else {})


@kernel
def wait(CHAIN: tl.constexpr):
    """Until all that the kernels in front have written is there.

    A kernel loads what no kernel writes (weights) before this, and everything else after it.
    """
    if CHAIN:
        cuda.gdc_wait()


@kernel
def go_on(CHAIN: tl.constexpr):
    """Let the next kernel start: it waits for this one's results by itself."""
    if CHAIN:
        cuda.gdc_launch_dependents()


@kernel
def dot(a, b, acc):
    """``acc + a @ b`` in f32. Entries of f32 are not rounded to tf32; the interpreter multiplies no bf16."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@kernel
def rounded(x, to: tl.constexpr):
    """Entries of f32 in ``to``, to the nearest; beyond what an fp8 holds, its largest.

    The GPU does this as it casts; the interpreter cuts bits off, so it is given entries that have no more.
    """
    if INTERPRETED and to == tl.bfloat16:
        x = _nearest(x, 0x10000)
    elif INTERPRETED and to == tl.float8e4nv:
        x = tl.where(x == x, tl.minimum(tl.maximum(x, -448.0), 448.0), x)
        x = tl.where(tl.abs(x) < 2.0**-6, (x + 1.5 * 2.0**14) - 1.5 * 2.0**14, _nearest(x, 0x100000))
    elif INTERPRETED and to == tl.float8e5:
        x = tl.where(x == x, tl.minimum(tl.maximum(x, -57344.0), 57344.0), x)
        x = tl.where(tl.abs(x) < 2.0**-14, (x + 1.5 * 2.0**7) - 1.5 * 2.0**7, _nearest(x, 0x200000))
    return x.to(to)


@kernel
def kept(x, to: tl.constexpr):
    """Entries of f32 as ``rounded`` makes them, in f32 still.

    Two bf16 at a time: the instruction that rounds one is as slow as an exponential.
    """
    if INTERPRETED or to != tl.bfloat16:
        return rounded(x, to).to(tl.float32)
    return tl.inline_asm_elementwise(
        """{ .reg .b32 pair; cvt.rn.bf16x2.f32 pair, $3, $2;
        shl.b32 $0, pair, 16; and.b32 $1, pair, 0xffff0000; }""",
        "=f,=f,f,f", [x], tl.float32, is_pure=True, pack=2,
    )  # fmt: skip


@kernel
def whole(x):
    """Entries of f32 to the nearest whole number, half to even. On a GPU not by adding and subtracting 1.5 *
    2 ** 23: the compiler joins that with a product in front, which then is not rounded by itself.
    """
    if INTERPRETED:
        return (x + 12582912.0) - 12582912.0
    return tl.inline_asm_elementwise("cvt.rni.f32.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@kernel
def _nearest(x, UNIT: tl.constexpr):
    """f32 rounded to even where the bit ``UNIT`` is the last that counts."""
    bits = x.to(tl.int32, bitcast=True)
    bits += UNIT // 2 - 1 + tl.where((bits & UNIT) != 0, 1, 0)
    near = (bits & -UNIT).to(tl.float32, bitcast=True)
    return tl.where(x == x, near, x)
