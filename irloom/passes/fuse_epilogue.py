"""Let a linear finish its result: bias, activation, a number, a softcap and a residual in one kernel.

A product's result is in registers when it is done. What follows it entry by entry costs nothing there, and a
read and a write of the whole tensor as an op of its own. So the linears of plain MLPs take their activation
along (``gelu`` of GPT-2, ``relu2`` of Nemotron), heads their scale or softcap (Cohere, Gemma 2), and
projections out of a block the residual that they are added to. Gates of MLPs come first (``fuse-mlp``), and a
sum that a norm follows belongs to ``fuse-norm``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from irloom.ir.elem import Elem
from irloom.ir.graph import Arg, Module, Node, Param, Stmt, Value
from irloom.ir.op import OPS, Op
from irloom.ir.ops import add, div, linear, linear_act, mul, softcap
from irloom.ir.ops.activation import ACTIVATIONS

from .core import Changes, NoMatch, Pass, spend
from .draft import Draft
from .near_miss import NearMiss

STAGES = ("the product", "a bias", "an activation", "a number", "a softcap", "a residual")
"""What an epilogue does, in its order."""


@dataclass(frozen=True)
class Epilogue:
    """A linear and what it has taken along; ``stage`` is the last of these in ``STAGES``."""

    x: Arg
    weight: Arg
    bias: Arg
    residual: Arg = None
    attrs: dict[str, Any] = field(default_factory=dict[str, Any])
    stage: int = 0

    def then(self, stage: int, what: Node, *, again: bool = False, **changes: Any) -> Epilogue:
        """With one more part; ``NoMatch`` where that would have to come earlier."""
        if self.stage > stage or (self.stage == stage and not again):
            late, last = STAGES[stage], STAGES[self.stage]
            raise NoMatch(f"{what.result.name} is {late} after {last}")
        return replace(self, stage=stage, **changes)


Take = Callable[[Epilogue, Node, Value], Epilogue | None]
"""An epilogue that also does what a node does to its result; None where the node does something else."""


def _activation(name: str) -> Take:
    def take(e: Epilogue, n: Node, y: Value) -> Epilogue:
        act = "gelu_tanh" if n.attrs.get("tanh") is True else name
        return e.then(2, n, attrs={**e.attrs, "act": act})

    return take


def _number(e: Epilogue, n: Node, y: Value) -> Epilogue | None:
    """A product with a number, or a quotient by one."""
    by = next((a for a in n.args if a is not y), None)
    if not isinstance(by, (int, float)) or n.args[0] is not y or by == 0:
        return None
    scale = e.attrs.get("scale", 1.0) * (by if n.op is mul else 1.0 / by)
    return e.then(3, n, again=True, attrs={**e.attrs, "scale": float(scale)})


def _cap(e: Epilogue, n: Node, y: Value) -> Epilogue:
    return e.then(4, n, attrs={**e.attrs, "softcap": n.attrs["cap"]})


def _sum(e: Epilogue, n: Node, y: Value) -> Epilogue | None:
    """A bias that is a weight of a row's width, or a residual of the result's own type."""
    other = next((a for a in n.args if a is not y), None)
    if not isinstance(other, Value):
        return None
    if isinstance(other, Param) and other.weight is not None and other.type.dims == y.type.dims[-1:]:
        if e.bias is not None:
            raise NoMatch(f"{n.result.name} adds {other.name}, and there is a bias already")
        if not isinstance(other.type.elem, Elem) or n.result.type != y.type:
            raise NoMatch(f"{other.name} is {other.type}, not a bias of {y.type}")
        return e.then(1, n, bias=other)
    if other.type != y.type:
        raise NoMatch(f"{other.name} is {other.type}, not a residual of {y.type}")
    return e.then(5, n, residual=other)


TAKES: dict[Op, Take] = {
    **{OPS[name]: _activation(name) for name in ACTIVATIONS if name in OPS},
    mul: _number,
    div: _number,
    softcap: _cap,
    add: _sum,
}


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """No options."""

    after = ("canonicalize", "raise", "fuse-qkv", "fuse-mlp", "fuse-moe", "fuse-norm", "gather-logits")
    before = ("plan-memory",)

    def run(self, m: Module) -> Changes:
        changes = Changes()
        for f in m.funcs.values():
            d = Draft(f)
            for n in f.nodes:
                if n.op is linear:
                    _fuse(d, n, changes)
            d.commit()
        return changes


def _fuse(d: Draft, n: Node, changes: Changes) -> None:
    """Take along what follows a linear, as far as its epilogue can do it."""
    x, weight, bias = [*n.args, None][:3]
    given = {"elem": n.attrs["elem"]} if n.attrs["elem"] is not None else {}  # of quantized rows
    e, taken, y = Epilogue(x, weight, bias, attrs=given), list[Node](), n.result
    try:
        while (after := _next(d, y)) and (grown := TAKES[after.op](e, after, y)):
            e, y = grown, after.result
            taken.append(after)
    except NoMatch as why:
        changes.near_misses.append(NearMiss(f"{d.func.name}.{n.result.name}", str(why), loc=n.loc))
    if not taken or not spend():
        return
    made: list[Stmt] = []
    with d.builder(made, n.loc):
        if e.stage == 1:
            new = linear(e.x, e.weight, e.bias, **given)
        else:
            new = linear_act(e.x, e.weight, e.bias, e.residual, **e.attrs)
    d.insert(made, taken[-1])
    d.redirect(y, new)
    d.sweep([n, *taken])
    d.rename(new, y.name)
    parts = ", ".join(STAGES[s] for s in _stages(e, bias))
    changes.places.append(f"{d.func.name}.{new.name}: a linear with {parts}")


def _next(d: Draft, y: Value) -> Node | None:
    """The node that alone reads ``y``, if an epilogue may do what it does; ``NoMatch`` if others read it."""
    readers = [s for s in d.readers.get(y, {}) if isinstance(s, Node) and s.op in TAKES]
    if not readers:
        return None
    first, others = readers[0], [s for s in d.readers[y] if s is not readers[0]]
    if others or y in d.returned:
        other = others[0].results[0].name if others else "return"
        raise NoMatch(f"{y.name} is read by {first.result.name} and has another reader: {other}")
    return first


def _stages(e: Epilogue, bias: Arg) -> list[int]:
    given = (e.bias is not bias, "act" in e.attrs, "scale" in e.attrs, "softcap" in e.attrs, e.residual)
    return [stage for stage, part in enumerate(given, 1) if part]
