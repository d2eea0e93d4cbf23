"""What ``canonicalize`` does to one node at a time: how it counts dims, and what its operands could be."""

from __future__ import annotations

import torch

from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Func, Node, Stmt, Value
from irloom.ir.ops import bitwise_xor, expand, full, logical_and, logical_not, logical_or, where
from irloom.ir.signature import Operand
from irloom.ir.types import Type

from .core import Changes, spend

OF_TENSORS = (where, logical_and, logical_or, logical_not, bitwise_xor)
"""Ops that take no plain number: ``where`` none for its condition, the others none at all."""


def tidy(f: Func) -> Changes:
    """Count the last dim as -1 and others from 0; drop expands that broadcasting implies; inline numbers."""
    producers = f.producers()
    changes = Changes()
    for n in f.nodes:
        for what in (*_count_dim(n), *_operands(n, producers)):
            changes.places.append(f"{f.name}.{n.results[0].name}: {what}")
    return changes


def _count_dim(n: Node) -> list[str]:
    dim, x = n.attrs.get("dim"), n.operands[0] if n.args else None
    if not isinstance(dim, int) or not isinstance(x, Type):
        return []
    usual = -1 if dim in (-1, x.rank - 1) else dim % x.rank
    if dim == usual or not spend():
        return []
    n.attrs["dim"] = usual
    return [f"dim {dim} is {usual}"]


def _operands(n: Node, producers: dict[Value, Stmt]) -> list[str]:
    if not all(t.axes is not None and all(a.broadcast for a in t.axes) for t in n.op.signature.ins):
        return []
    done: list[str] = []
    for i, a in enumerate(n.args):
        s = producers.get(a) if isinstance(a, Value) else None
        if not isinstance(s, Node) or not isinstance(a, Value):
            continue
        new = _simpler(s) if s.op is expand or _takes_numbers(n, i) else None
        if new is not None and _same(n, i, new) and spend():
            n.args[i] = new
            done.append(f"{a.name} as {new.name if isinstance(new, Value) else new}")
    return done


def _takes_numbers(n: Node, at: int) -> bool:
    return n.op not in OF_TENSORS or (n.op is where and at > 0)


def _simpler(s: Node) -> Arg:
    """What broadcasts to the result of ``s``: the operand of an expand, the number that fills a tensor."""
    if s.op is expand:
        return s.args[0]
    if s.op is not full:
        return None
    value, elem = s.attrs["value"], s.result.type.plain
    exact = isinstance(value, (int, float)) and torch.tensor(value, dtype=elem.torch).item() == value
    return value if isinstance(value, (int, float)) and (exact or elem.name == "f32") else None


def _same(n: Node, i: int, new: Arg) -> bool:
    """Whether the node makes the same types with ``new`` as operand ``i``."""
    args: list[Arg] = [*n.args[:i], new, *n.args[i + 1 :]]
    operands: list[Operand] = [a.type if isinstance(a, Value) else a for a in args]
    try:
        return n.op.infer(operands, n.attrs) == tuple(r.type for r in n.results)
    except IRError:
        return False
