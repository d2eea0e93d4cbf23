"""Sizes in a captured graph as dims of the IR."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch

from irloom.ir.dims import Dim, Sym, product
from irloom.ir.errors import TraceError


def dim_of(size: int | torch.SymInt, names: Mapping[str, Sym]) -> Dim:
    """A size as a polynomial over the IR's symbols; ``names`` maps torch's symbols to them."""
    if isinstance(size, int):
        return size
    return _convert(size.node.expr, names)


def _convert(expr: sympy.Basic, names: Mapping[str, Sym]) -> Dim:
    match expr:
        case sympy.Integer():
            return int(expr)
        case sympy.Symbol() if str(expr) in names:
            return names[str(expr)]
        case sympy.Add():
            return sum((_convert(part, names) for part in expr.args), 0)
        case sympy.Mul():
            return product(_convert(part, names) for part in expr.args)
        case sympy.Pow(args=(base, sympy.Integer() as exponent)) if exponent > 0:
            return product([_convert(base, names)] * int(exponent))
        case _:
            pass
    if any(str(symbol).startswith("u") for symbol in expr.free_symbols):
        raise TraceError("a size depends on the values of a tensor")
    raise TraceError(f"a size is {expr}, which is not a polynomial of the token counts")
