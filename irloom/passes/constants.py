"""What is known before a step runs is computed before: arithmetic on numbers and on small constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from irloom.ir.elem import Elem, elem_of
from irloom.ir.graph import Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.interp import apply_node
from irloom.ir.ops import arange, expand, full, permute, reshape, slice_, where
from irloom.ir.types import Type
from irloom.ir.weight_expr import Const

from .core import Changes, spend

FEW = 1024
"""Entries that a constant may have whatever it is made of; one of more must not have more than that has."""

MOVES = (reshape, permute, expand, slice_)
SAMPLE = 64
"""Entries that stand for any number of equal ones: so many that torch computes them as it does a tensor."""


def fold_constants(m: Module, f: Func) -> Changes:
    """Replace what tensors of one number make by such a tensor, and what constants make by a constant."""
    changes = Changes()
    made = f.producers()
    stay = {*f.returns, *(v for s in f.body if isinstance(s, Loop) for v in (*s.inits, *s.yields))}
    swap: dict[Value, Value] = {}
    kept: list[Stmt] = []
    for s in f.body:
        if isinstance(s, Node):
            s.args = [swap.get(a, a) if isinstance(a, Value) else a for a in s.args]
            filled = _filled(s, made)
            if filled is not None and spend():
                changes.places.append(f"{f.name}.{s.result.name}: {s.op.name} of one number")
                s.op, s.args = full, []
                s.attrs = full.complete(
                    {"dims": s.result.type.dims, "value": filled, "elem": s.result.type.elem}
                )
            if (chosen := _chosen(s, made)) is not None and not stay.intersection(s.results) and spend():
                swap[s.result] = chosen
                changes.places.append(f"{f.name}.{s.result.name}: its condition is one number")
                continue
            values = None if stay.intersection(s.results) else _computed(m, s, made)
            if values is not None and spend():
                swap.update(zip(s.results, _constants(m, f, s, values), strict=True))
                changes.places.append(f"{f.name}.{s.results[0].name}: {s.op.name} of constants")
                continue
        kept.append(s)
    f.body = kept
    f.replace_uses(swap)
    return changes


def _filled(n: Node, made: dict[Value, Stmt]) -> int | float | bool | None:
    """The number that fills the result of ``n``, where it follows from numbers that fill its operands."""
    given = [_number(made.get(v)) for v in n.values]
    if not given or None in given or len(n.results) > 1 or not isinstance(n.result.type.elem, Elem):
        return None
    if n.op in MOVES:
        return given[0]
    ins = n.op.signature.ins
    if n.op.variadic or not all(t.axes is not None and all(a.broadcast for a in t.axes) for t in ins):
        return None
    numbers = iter(given)
    args = [
        torch.full((SAMPLE,) * bool(a.type.rank), next(numbers) or 0, dtype=a.type.plain.torch)
        if isinstance(a, Value)
        else a
        for a in n.args
    ]
    (out,) = apply_node(n, args, {})
    value = out.reshape(-1)[0].item()
    return value if math.isfinite(value) and out.dtype == n.result.type.plain.torch else None


def _chosen(n: Node, made: dict[Value, Stmt]) -> Value | None:
    """What ``where`` chooses everywhere, if that is a value of the type that it makes."""
    if n.op is not where or not isinstance(n.args[0], Value):
        return None
    condition = _number(made.get(n.args[0]))
    x = None if condition is None else n.args[1 if condition else 2]
    return x if isinstance(x, Value) and x.type == n.result.type else None


def _number(s: Stmt | None) -> int | float | bool | None:
    if not isinstance(s, Node) or s.op is not full:
        return None
    value = s.attrs["value"]
    return value if isinstance(value, int | float) else None


def _computed(m: Module, n: Node, made: dict[Value, Stmt]) -> list[torch.Tensor] | None:
    """What ``n`` makes of constants, where that is small; None where it reads anything else."""
    if not n.values or any(not _known(r.type) for r in n.results):
        return None
    given = [_tensor(m, v, made) for v in n.values]
    if any(x is None for x in given) or all(_number(made.get(v)) is not None for v in n.values):
        return None
    size = sum(math.prod(_dims(r.type)) for r in n.results)
    if size > max(FEW, sum(x.numel() for x in given if x is not None)):
        return None
    tensors = iter(given)
    args: list[Any] = [next(tensors) if isinstance(a, Value) else a for a in n.args]
    out = apply_node(n, args, {})
    wanted = [(r.type.plain.torch, _dims(r.type)) for r in n.results]
    return [x.contiguous() for x in out] if [(x.dtype, tuple(x.shape)) for x in out] == wanted else None


def _tensor(m: Module, v: Value, made: dict[Value, Stmt]) -> torch.Tensor | None:
    """The value of a constant, of a range, or of a tensor that one number fills."""
    s = made.get(v)
    if isinstance(v, Param) and isinstance(v.weight, Const) and _known(v.type):
        return m.consts[v.weight.name].to(v.type.plain.torch)
    if isinstance(s, Node) and s.op in (arange, full) and _known(v.type) and math.prod(_dims(v.type)) <= FEW:
        return apply_node(s, [], {})[0]
    return None


def _known(t: Type) -> bool:
    """Whether it is a whole plain tensor whose dims are numbers, in a format that the header can hold."""
    whole = not any(t.axes) and not t.partial and all(isinstance(d, int) for d in t.dims)
    return whole and isinstance(t.elem, Elem) and t.elem == elem_of(t.elem.torch)


def _dims(t: Type) -> tuple[int, ...]:
    return tuple(d for d in t.dims if isinstance(d, int))


def _constants(m: Module, f: Func, n: Node, values: Sequence[torch.Tensor]) -> list[Param]:
    """New constants of the module, bound to parameters that take the names of what ``n`` made."""
    params: list[Param] = []
    for r, x in zip(n.results, values, strict=True):
        at = len(m.consts)
        while f"f{at}" in m.consts:
            at += 1
        m.consts[f"f{at}"] = x
        params.append(Param(r.name, r.type, weight=Const(f"f{at}")))
    f.params += params
    return params
