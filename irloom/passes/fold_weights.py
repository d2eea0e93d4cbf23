"""Computation on weights alone, such as ``1 + w``, becomes part of how the weight is read."""

from __future__ import annotations

from math import prod
from typing import Any

from irloom.ir import ops
from irloom.ir.graph import Builder, Func, Node, Param, Stmt, Value
from irloom.ir.weight_expr import Affine, Cast, Concat, Exp, Reshape, Scale, Slice, Transpose, WeightExpr

from .core import Changes, spend


def fold_weights(f: Func) -> Changes:
    """Bind weights to expressions of weights where the function computes them, and drop what is read no more.

    A chain folds from its start: ``add(cast(w, to=f32), 1)`` becomes ``affine(cast(w, f32), 1.0, 1.0)``.
    """
    changes = Changes()
    readers = f.readers()
    names = Builder(f)
    swap: dict[Value, Value] = {}
    kept: list[Stmt] = []
    for s in f.body:
        folded = _folded(s, swap) if isinstance(s, Node) else None
        if not isinstance(s, Node) or folded is None or not spend():
            kept.append(s)
            continue
        expr, source = folded
        if len(readers.get(source, [])) == 1 and source not in f.returns:
            source.weight, source.type, new = expr, s.result.type, source
        else:
            new = Param(names.fresh(source.name), s.result.type, weight=expr)
            f.params.append(new)
        readers[new] = readers.get(s.result, [])
        swap[s.result] = new
        changes.places.append(f"{f.name}.{new.name}: {s.op.name} of a weight is read with it")
    f.body = kept
    f.replace_uses(swap)
    unread = {p for p in f.weights if not readers.get(p) and p not in f.returns}
    f.params = [p for p in f.params if p not in unread]
    return changes


def _folded(n: Node, swap: dict[Value, Value]) -> tuple[WeightExpr, Param] | None:
    """The expression for the result of ``n``, and the weight that it goes on from; None if it has none."""
    args: list[Any] = [swap.get(a, a) if isinstance(a, Value) else a for a in n.args]
    weights = [a for a in args if isinstance(a, Param) and a.weight is not None]
    if not weights or len(weights) != sum(isinstance(a, Value) for a in args):
        return None
    first = weights[0]
    x = first.weight
    assert x is not None
    if n.op is ops.concat:
        parts = tuple(w.weight for w in weights if w.weight is not None)
        return Concat(parts, _dim(n, first)), first
    if n.op is ops.mul and len(weights) == 2:
        return _times(*weights)
    if len(weights) > 1:
        return None
    expr = _moved(n, first, x) if len(args) == 1 else _scaled(n, args, x)
    return None if expr is None else (expr, first)


def _moved(n: Node, w: Param, x: WeightExpr) -> WeightExpr | None:
    """What an op of one operand is as an expression."""
    dims = n.result.type.dims if len(n.results) == 1 else ()
    if n.op is ops.cast:
        return Cast(x, n.result.type.plain)
    if n.op is ops.neg:
        return Affine(x, -1.0, 0.0)
    if n.op is ops.exp:
        return Exp(x)
    if n.op is ops.permute and n.attrs["dims"] == (*range(len(dims) - 2), len(dims) - 1, len(dims) - 2):
        return Transpose(x)
    if n.op is ops.permute:
        return _rotated(n, w, x)
    if n.op is ops.reshape and all(isinstance(d, int) for d in dims):
        return Reshape(x, tuple(d for d in dims if isinstance(d, int)))
    if n.op is ops.slice_ and n.attrs["step"] == 1:
        at = _dim(n, w)
        start, stop = n.attrs["start"], n.attrs["stop"]
        whole = w.type.dims[at]
        end = whole if stop is None else stop
        if isinstance(start, int) and isinstance(end, int):
            return Slice(x, at, start, end)
    return None


def _rotated(n: Node, w: Param, x: WeightExpr) -> WeightExpr | None:
    """Dims of which the first go behind the others: a transposed matrix, seen in other dims."""
    order, sizes = n.attrs["dims"], [d for d in w.type.dims if isinstance(d, int)]
    assert isinstance(order, tuple)
    first = order.index(0)
    cut = len(order) - first
    if len(sizes) != len(order) or order != (*range(cut, len(order)), *range(cut)):
        return None
    matrix = Reshape(x, (prod(sizes[:cut]), prod(sizes[cut:])))
    return Reshape(Transpose(matrix), (*sizes[cut:], *sizes[:cut]))


def _scaled(n: Node, args: list[Any], x: WeightExpr) -> WeightExpr | None:
    """What arithmetic with one number is as an expression."""
    number = next((a for a in args if isinstance(a, int | float) and not isinstance(a, bool)), None)
    if number is None or len(args) != 2 or n.result.type.plain.kind != "float":
        return None
    if n.op is ops.mul:
        return Affine(x, float(number), 0.0)
    if n.op is ops.add:
        return Affine(x, 1.0, float(number))
    if n.op is ops.sub and args[1] is number:
        return Affine(x, 1.0, -float(number))
    return None


def _times(a: Param, b: Param) -> tuple[WeightExpr, Param] | None:
    """A weight times another that broadcasts along all of its dims but one."""
    x, by = (a, b) if a.type.rank >= b.type.rank else (b, a)
    sizes = [d for d in x.type.dims if isinstance(d, int)]
    beside = [1] * (x.type.rank - by.type.rank) + [d for d in by.type.dims if isinstance(d, int)]
    along = [at for at, d in enumerate(beside) if d != 1]
    if len(along) != 1 or beside[along[0]] != sizes[along[0]] or x.type.plain.kind != "float":
        return None
    assert x.weight is not None and by.weight is not None
    scales = by.weight.x if isinstance(by.weight, Reshape) else by.weight
    scales = by.weight if by.type.rank == 1 else Reshape(scales, (sizes[along[0]],))
    return Scale(x.weight, scales, along[0]), x


def _dim(n: Node, w: Param) -> int:
    dim = n.attrs["dim"]
    assert isinstance(dim, int)
    return dim % w.type.rank
