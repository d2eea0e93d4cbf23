"""Sizes in a captured graph as dims of the IR."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch

from irloom.ir.dims import Dim, Sym
from irloom.ir.errors import TraceError


def dim_of(size: int | torch.SymInt, names: Mapping[str, Sym]) -> Dim:
    """A size as a polynomial over the IR's symbols; ``names`` maps torch's symbols to them."""
    if isinstance(size, int):
        return size
    return _convert(size.node.expr, names)


def _convert(expr: sympy.Expr, names: Mapping[str, Sym]) -> Dim:
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol and str(expr) in names:
        return names[str(expr)]
    if expr.is_Add or expr.is_Mul:
        parts = [_convert(part, names) for part in expr.args]
        out = parts[0]
        for part in parts[1:]:
            out = out + part if expr.is_Add else part * out
        return out
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        base, out = _convert(expr.base, names), 1
        for _ in range(int(expr.exp)):
            out = base * out
        return out
    raise TraceError(f"a size is {expr}, which is not a polynomial of the token counts")
