"""Sums of products, by an equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, OPERATORS, allow, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class Einsum(Layer):
    """``equation`` over the operands: letters and an arrow, no ellipsis, no diagonal. Dims of 1 broadcast."""

    source = f"{OPERATORS}/Einsum.html"

    equation: str
    operands: tuple[Tensor, ...]

    def infer(self) -> tuple[Inferred, ...]:
        left, arrow, right = self.equation.replace(" ", "").partition("->")
        terms = left.split(",")
        if not arrow or not all((t + "a").isalpha() and (t + "a").islower() for t in (*terms, right)):
            raise self.refuse(f"{self.equation!r}: lower-case letters, commas and an arrow")
        if len(terms) != len(self.operands):
            raise self.refuse(f"{len(self.operands)} operands for {self.equation!r}")
        same_elem(self, *self.operands)
        allow(self, "an operand", self.operands[0], FLOATS)
        size: dict[str, Dim] = {}
        for letters, t in zip(terms, self.operands, strict=True):
            if len(letters) != len(t.dims) or len(set(letters)) != len(letters):
                raise self.refuse(f"{letters!r} does not name each dim of {t} once")
            for letter, d in zip(letters, t.dims, strict=True):
                known = size.setdefault(letter, d)
                size[letter] = d if known == 1 else known
                if d not in (1, size[letter]):
                    raise self.refuse(f"`{letter}` is {size[letter]} and {d}")
        if len(set(right)) != len(right) or not set(right) <= set(size):
            raise self.refuse(f"{right!r} does not come from {left!r}")
        return ((self.operands[0].elem, tuple(size[letter] for letter in right)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        return (torch.einsum(self.equation, *(value(t) for t in self.operands)),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        return [to.network.add_einsum([to[t] for t in self.operands], self.equation).get_output(0)]
