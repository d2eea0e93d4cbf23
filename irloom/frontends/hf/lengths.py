"""For which numbers of tokens a captured graph holds: for all, or the line that settles on one is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.export import Dim, ExportedProgram

from irloom.ir.errors import TraceError

DYNAMIC = {"input_ids": {1: Dim.AUTO}, "position_ids": {1: Dim.AUTO}, "past": {0: Dim.AUTO}}
"""Tokens of a step and tokens in the cache are free; what a model requires of them is found."""

SHORTEST = 2
"""Below this, torch itself takes sizes apart; a graph for two tokens and more is right for one."""

HINT = "it branches on, pads or loops over a length; such a block needs an op of its own"


@dataclass(frozen=True)
class Lengths:
    """Torch's symbols for the tokens of a step and for those in the cache, and how many tokens a model takes
    at once (None: any number).
    """

    tokens: str
    past: str
    longest: int | None


def lengths_of(program: ExportedProgram) -> Lengths:
    """Read them off a graph; ``TraceError`` where it holds for some lengths only."""
    inputs = {n.name: n.meta["val"] for n in program.graph.find_nodes(op="placeholder")}
    sizes = {name: _size(inputs[name].shape[at]) for name, free in DYNAMIC.items() for at in free}
    for name, size in sizes.items():
        if not isinstance(size, sympy.Symbol):
            what = "tokens in the cache" if name == "past" else "tokens"
            raise TraceError(f"the model computes in a way that holds for {size} {what} only", hint=HINT)
    found = program.range_constraints.get(sizes["input_ids"])
    if found is not None and found.lower > SHORTEST:
        raise TraceError(
            f"the model computes in a way that holds for {found.lower} tokens and more only", hint=HINT
        )
    finite = found is not None and isinstance(found.upper, sympy.Integer)
    return Lengths(
        str(sizes["input_ids"]),
        str(sizes["past"]),
        int(found.upper) if found is not None and finite else None,
    )


def _size(size: int | torch.SymInt) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


class Settled(Exception):
    """Raised where code settles on a length, to have its traceback."""


@contextlib.contextmanager
def settling_raises() -> Iterator[None]:
    """Within, an export stops with ``Settled`` at the first line that holds for some lengths only."""
    from torch.fx.experimental import symbolic_shapes

    env: Any = symbolic_shapes.ShapeEnv  # it has no hook: its two methods that learn a fact are wrapped
    replacement, narrowed = env._set_replacement, env._update_var_to_range

    def replace(self: Any, a: Any, tgt: Any, *rest: Any) -> None:
        if isinstance(tgt, sympy.Integer) and not self.is_unbacked_symint(a):
            raise Settled(f"a length is {tgt}")
        replacement(self, a, tgt, *rest)

    def narrow(self: Any, symbol: Any, found: Any, *rest: Any, **kwargs: Any) -> None:
        if not self.is_unbacked_symint(symbol) and found.lower > SHORTEST:
            at_least = "" if found.lower == found.upper else "at least "
            raise Settled(f"a length is {at_least}{found.lower}")
        narrowed(self, symbol, found, *rest, **kwargs)

    env._set_replacement, env._update_var_to_range = replace, narrow
    try:
        yield
    finally:
        env._set_replacement, env._update_var_to_range = replacement, narrowed
