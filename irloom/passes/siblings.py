"""Linears of one input as one: their weights joined row by row, their results cut apart again."""

from __future__ import annotations

from collections.abc import Sequence

from irloom.ir.elem import Quant
from irloom.ir.graph import Param, Value
from irloom.ir.weight_expr import Concat, WeightExpr

from .core import NoMatch
from .layers import split_loc
from .rewrite import Site


def join(site: Site, name: str, parts: Sequence[Value]) -> Param:
    """A new weight of all rows of ``parts``; ``NoMatch`` where one is no plain weight or read elsewhere."""
    exprs, first = [plain(site, p) for p in parts], parts[0].type
    for p in parts:
        if p.type.elem != first.elem or p.type.axes != first.axes:
            raise NoMatch(f"{p.name} is {p.type}, {parts[0].name} is {first}")
    if len(set(parts)) < len(parts):
        raise NoMatch(f"{parts[0].name} is the weight of both")
    rows = sum((p.type.dims[0] for p in parts), 0)
    return site.new_weight(
        name, first.with_dims((rows, *first.dims[1:]), first.axes), Concat(tuple(exprs), 0)
    )


def plain(site: Site, p: Value) -> WeightExpr:
    """The expression of a weight that may become rows of another; ``NoMatch`` for what may not."""
    expr = site.weight(p)
    if isinstance(p.type.elem, Quant):
        raise NoMatch(f"{p.name} is quantized already")
    if len(readers := site.readers(p)) > 1:
        raise NoMatch(f"{p.name} has another reader: {readers[-1].results[0].name}")
    return expr


def join_biases(site: Site, name: str, parts: Sequence[Value | None]) -> Param | None:
    """The biases joined, None where there are none; ``NoMatch`` where only some linears have one."""
    given = [p for p in parts if p is not None]
    if given and len(given) < len(parts):
        raise NoMatch("some of the linears have a bias and some have none")
    return join(site, name, given) if given else None


def common_loc(locs: Sequence[str]) -> str:
    """The innermost module that holds all of ``locs``, and the first's place in its source.

    >>> common_loc(["layers.0.self_attn.q_proj x.py:15", "layers.0.self_attn.k_proj x.py:16"])
    'layers.0.self_attn x.py:15'
    """
    paths = [split_loc(loc)[0].split(".") for loc in locs]
    shared = [names[0] for names in zip(*paths, strict=False) if len(set(names)) == 1]
    return " ".join(part for part in (".".join(shared), split_loc(locs[0])[1]) if part)
