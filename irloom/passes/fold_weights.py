"""Computation on weights alone, such as ``1 + w``, becomes part of how the weight is read.

What is computed is the same to the last bit: an expression rounds where the program did, to the element that
the parameter is declared with, whatever the checkpoint stores.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from math import prod
from typing import Any

from irloom.ir import ops
from irloom.ir.elem import Elem
from irloom.ir.graph import Builder, Func, Loop, Node, Param, Stmt, Value
from irloom.ir.weight_expr import Affine, Cast, Concat, Exp, Reshape, Scale, Slice, Transpose, WeightExpr

from .core import Changes, spend


def fold_weights(f: Func) -> Changes:
    """Bind weights to expressions of weights where the function computes them; ``drop`` takes out the rest.

    A chain folds from its start: ``add(cast(w, to=f32), 1)`` becomes ``affine(cast(w, f32), 1.0, 1.0)``.
    """
    changes = Changes()
    readers = f.readers()
    names = Builder(f)
    swap: dict[Value, Value] = {}
    kept: list[Stmt] = []
    returned = set(f.returns)
    carried = {v for s in f.body if isinstance(s, Loop) for v in (*s.inits, *s.yields)}
    for s in f.body:
        folded = folded_node(s, swap) if isinstance(s, Node) and not carried.intersection(s.results) else None
        if not isinstance(s, Node) or folded is None or not spend():
            kept.append(s)
            continue
        exprs, source = folded
        for r, expr in zip(s.results, exprs, strict=True):
            if len(exprs) == 1 and len(readers.get(source, [])) == 1 and source not in returned:
                source.weight, source.type, new = expr, r.type, source
            else:
                name = names.fresh(source.name) if len(exprs) == 1 else r.name
                new = Param(name, r.type, weight=expr)
                f.params.append(new)
            readers[new] = readers.get(r, [])
            swap[r] = new
            if r in returned:
                returned.add(new)
        changes.places.append(f"{f.name}.{source.name}: {s.op.name} of a weight is read with it")
    f.body = kept
    f.replace_uses(swap)
    return changes


def folded_node(n: Node, swap: dict[Value, Value]) -> tuple[list[WeightExpr], Param] | None:
    """Expressions for the results of ``n``, and the weight that they go on from; None if there are none."""
    args: list[Any] = [swap.get(a, a) if isinstance(a, Value) else a for a in n.args]
    weights = [a for a in args if isinstance(a, Param) and a.weight is not None]
    if not weights or len(weights) != sum(isinstance(a, Value) for a in args):
        return None
    first = weights[0]
    x = first.weight
    assert x is not None
    if n.op is ops.split:
        return _parts(n, first, x), first
    expr: WeightExpr | None = None
    if n.op is ops.concat:
        expr = Concat(tuple(w.weight for w in weights if w.weight is not None), _dim(n, first))
    elif n.op is ops.mul and len(weights) == 2:
        first, by = sorted(weights, key=lambda w: -w.type.rank)
        expr = _times(first, by, n.result.type.plain)
    elif len(weights) == len(args) == 1:
        expr = _moved(n, first, x) or _computed(n, first)
    elif len(weights) == 1:
        expr = _scaled(n, args, first)
    return None if expr is None else ([expr], first)


def rounded(w: Param, to: Elem) -> WeightExpr | None:
    """A weight as it is declared, in the element ``to``; None where that is wider than f32."""
    assert w.weight is not None
    own = w.weight if element(w.weight) == w.type.plain else Cast(w.weight, w.type.plain)
    if to.kind != "float" or to.bits > 32:
        return None
    return own if to == w.type.plain else Cast(own, to)


def element(e: WeightExpr) -> Elem | None:
    """The element of an expression, where that does not depend on what a file stores."""
    match e:
        case Cast(_, elem):
            return elem
        case Slice(x) | Transpose(x) | Reshape(x) | Affine(x) | Scale(x) | Exp(x):
            return element(x)
        case _:
            return None


def _parts(n: Node, w: Param, x: WeightExpr) -> list[WeightExpr]:
    """The parts that a weight is split into."""
    at, sizes = _dim(n, w), [r.type.dims[_dim(n, w)] for r in n.results]
    ends = accumulate((int(str(size)) for size in sizes), initial=0)
    return [Slice(x, at, start, stop) for start, stop in pairwise(ends)]


def _computed(n: Node, w: Param) -> WeightExpr | None:
    """What arithmetic on one weight is as an expression."""
    if n.op is ops.cast and n.result.type.plain.kind == "float":
        wide = w.type.plain.kind == "float" and w.type.plain.bits >= 32
        x = w.weight if wide else rounded(w, w.type.plain)
        return None if x is None else Cast(x, n.result.type.plain)
    x = rounded(w, n.result.type.plain)
    if x is None or n.op not in (ops.neg, ops.exp):
        return None
    return Affine(x, -1.0, 0.0) if n.op is ops.neg else Exp(x)


def _moved(n: Node, w: Param, x: WeightExpr) -> WeightExpr | None:
    """What an op that moves entries is as an expression."""
    dims = n.result.type.dims if len(n.results) == 1 else ()
    if n.op is ops.permute and n.attrs["dims"] == (*range(len(dims) - 2), len(dims) - 1, len(dims) - 2):
        return Transpose(x)
    if n.op is ops.permute and dims:
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
    assert isinstance(order, tuple) and order
    first = order.index(0)
    cut = len(order) - first
    if len(sizes) != len(order) or order != (*range(cut, len(order)), *range(cut)):
        return None
    matrix = Reshape(x, (prod(sizes[:cut]), prod(sizes[cut:])))
    return Reshape(Transpose(matrix), (*sizes[cut:], *sizes[:cut]))


def _scaled(n: Node, args: list[Any], w: Param) -> WeightExpr | None:
    """What arithmetic with one number is as an expression."""
    number = next((a for a in args if isinstance(a, int | float) and not isinstance(a, bool)), None)
    x = rounded(w, n.result.type.plain)
    if number is None or x is None or len(args) != 2:
        return None
    if n.op is ops.mul:
        return Affine(x, float(number), 0.0)
    if n.op is ops.add:
        return Affine(x, 1.0, float(number))
    if n.op is ops.sub:
        return Affine(x, 1.0, -float(number)) if args[1] is number else Affine(x, -1.0, float(number))
    if n.op is ops.div and args[1] is number and abs(math.frexp(number)[0]) == 0.5:
        return Affine(x, 1 / float(number), 0.0)
    return None


def _times(x: Param, by: Param, elem: Elem) -> WeightExpr | None:
    """A weight times another that broadcasts along all of its dims but one."""
    sizes = [d for d in x.type.dims if isinstance(d, int)]
    beside = [1] * (x.type.rank - by.type.rank) + [d for d in by.type.dims if isinstance(d, int)]
    along = [at for at, d in enumerate(beside) if d != 1]
    whole, scales = rounded(x, elem), by.weight
    if len(along) != 1 or beside[along[0]] != sizes[along[0]] or whole is None or scales is None:
        return None
    if by.type.rank > 1:
        scales = Reshape(scales.x if isinstance(scales, Reshape) else scales, (sizes[along[0]],))
    narrow = by.type.plain.bits < 32 and element(scales) != by.type.plain
    return Scale(whole, Cast(scales, by.type.plain) if narrow else scales, along[0])


def _dim(n: Node, w: Param) -> int:
    dim = n.attrs["dim"]
    assert isinstance(dim, int)
    return dim % w.type.rank
