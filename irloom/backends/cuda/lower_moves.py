"""Lowering of ops that only move entries, where a view does not do: copies, one launch each."""

from __future__ import annotations

from irloom.ir.graph import Node, Value

from .lower import Lowering, lowers
from .lower_elementwise import KNOWN


@lowers("reshape", "permute", "expand", "slice", "concat")
def move(f: Lowering, n: Node) -> bool:
    """A kernel of the op's own name."""
    if any(not isinstance(a, Value) or str(a.type.elem) not in KNOWN for a in n.args):
        return f.decline(n, f"a move of {n.operands[0]}")
    return f.launch("sliced" if n.op.name == "slice" else n.op.name, n, *n.args, attrs=n.attrs)
