"""Translations of complex numbers, as rotary embeddings are sometimes written: pairs of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irloom.frontends.hf.aten.core import elementwise, tensor, translates
from irloom.frontends.hf.aten.elementwise import binary
from irloom.frontends.hf.aten.shape import select, stack
from irloom.frontends.hf.views import View
from irloom.ir import ops
from irloom.ir.errors import TraceError


@dataclass(frozen=True)
class Complex:
    """Real and imaginary parts. The IR has no complex element; no value of this kind reaches it."""

    real: View
    imag: View

    def each(self, move: Callable[[View], View]) -> Complex:
        """Both parts moved alike."""
        return Complex(move(self.real), move(self.imag))


MOVES = {
    "alias", "clone", "contiguous", "detach", "view", "reshape", "flatten", "unflatten", "transpose",
    "permute", "unsqueeze", "squeeze", "expand", "slice", "select", "index", "index_select", "embedding",
}  # fmt: skip
"""Ops that do the same to both parts."""


def on_complex(name: str, translator: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Translate an op whose first operands are complex."""
    kind = name.split(".")[1]
    if kind in MOVES and isinstance(args[0], Complex):
        return args[0].each(lambda part: translator(part, *args[1:], **kwargs))
    if kind in ("to", "_to_copy"):
        return args[0]
    if kind == "mul":
        return _product(args[0], args[1])
    if translator in (view_as_real, real, imag):
        return translator(*args, **kwargs)
    raise TraceError(f"op `{name}` has no translation for complex numbers")


def _product(a: Any, b: Any) -> Complex:
    if not (isinstance(a, Complex) and isinstance(b, Complex)):
        turned, by = (a, b) if isinstance(a, Complex) else (b, a)
        return turned.each(lambda part: tensor(binary(ops.mul, part, by)))
    real = elementwise(ops.sub, elementwise(ops.mul, a.real, b.real), elementwise(ops.mul, a.imag, b.imag))
    imag = elementwise(ops.add, elementwise(ops.mul, a.real, b.imag), elementwise(ops.mul, a.imag, b.real))
    return Complex(real, imag)


@translates("aten.polar.default")
def polar(length: Any, angle: Any) -> Complex:
    angle = tensor(angle)
    return Complex(
        elementwise(ops.mul, tensor(length), elementwise(ops.cos, angle)),
        elementwise(ops.mul, tensor(length), elementwise(ops.sin, angle)),
    )


@translates("aten.complex.default")
def complex_(real: Any, imag: Any) -> Complex:
    return Complex(tensor(real), tensor(imag))


@translates("aten.view_as_complex.default")
def view_as_complex(x: Any) -> Complex:
    x = tensor(x)
    return Complex(select(x, -1, 0), select(x, -1, 1))


@translates("aten.view_as_real.default")
def view_as_real(x: Any) -> View:
    return stack([x.real, x.imag], -1)


@translates("aten.real.default")
def real(x: Any) -> View:
    return x.real


@translates("aten.imag.default")
def imag(x: Any) -> View:
    return x.imag
