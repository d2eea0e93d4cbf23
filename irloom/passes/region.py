"""Parts of a function that are known by what they compute, in whatever spelling.

A region is cut out between a value and what is made of it, run on random numbers, and compared with what an
op gives. Agreement on many random rows is a proof for all practical purposes: two formulas of a model that
agree to five digits on a hundred of them, at the dims and with the numbers that they stand there with, are
one formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from irloom.ir import ops
from irloom.ir.elem import Elem
from irloom.ir.graph import Arg, Func, Node, Param, Stmt, Value
from irloom.ir.interp import apply_node
from irloom.ir.weight_expr import Const

from .draft import Draft

Consts = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Region:
    """The nodes, in order, that make ``ends`` from ``start`` and from what ``run`` is given beside it."""

    start: Value
    ends: tuple[Value, ...]
    nodes: list[Node]

    @cached_property
    def leaves(self) -> list[Value]:
        """What its nodes read but do not make, the start apart."""
        made = {r for n in self.nodes for r in n.results}
        read = dict.fromkeys(v for n in self.nodes for v in n.values)
        return [v for v in read if v not in made and v is not self.start]

    @cached_property
    def numbers(self) -> list[float]:
        """The plain numbers that its nodes compute with."""
        args = (a for n in self.nodes for a in n.args if isinstance(a, (int, float)))
        return list(dict.fromkeys(float(a) for a in args))

    @cached_property
    def key(self) -> str:
        """Equal for regions that compute the same: one proof serves every layer."""
        name: dict[Value, str] = {self.start: "x"}
        name.update((v, f"{i}:{v.type}") for i, v in enumerate(self.leaves) if not is_const(v))
        rows: list[str] = []
        for i, n in enumerate(self.nodes):
            args = [name.get(a, a.name) if isinstance(a, Value) else repr(a) for a in n.args]
            rows.append(f"{n.op.name}({', '.join(args)}; {n.attrs})")
            name.update((r, f"{i}.{j}") for j, r in enumerate(n.results))
        return "\n".join([*rows, *(name[end] for end in self.ends), str(self.start.type)])

    def run(
        self, given: Mapping[Value, torch.Tensor], consts: Consts, tokens: int
    ) -> dict[Value, torch.Tensor]:
        """All its values for ``tokens`` tokens, computed in f32 whatever it rounds to on the way."""
        frame = {**given, **{v: constant(v, consts) for v in self.leaves if is_const(v)}}

        def read(a: Arg) -> object:
            return frame[a] if isinstance(a, Value) else a

        for n in self.nodes:
            args = [read(a) for a in n.args]
            to, first = n.attrs.get("to"), args[0] if args else None
            if isinstance(to, Elem) and to.kind == "float" and isinstance(first, torch.Tensor):
                frame[n.result] = first.float()
            else:
                frame.update(zip(n.results, apply_node(n, args, {"T": tokens}), strict=True))
        return frame


class Cutter:
    """Cuts regions out of one function, and puts ops in their place. ``commit`` when all is done."""

    def __init__(self, f: Func) -> None:
        self.draft = Draft(f)

    def node(self, v: Value) -> Node | None:
        """The node that makes ``v``, if a node does."""
        s = self.draft.producer.get(v)
        return s if isinstance(s, Node) else None

    def behind(
        self, ends: Iterable[Value], inside: Callable[[Node], bool]
    ) -> tuple[list[Node], dict[Value, None]]:
        """The nodes ``inside`` that ``ends`` come from, in order, and the values where those start."""
        nodes: dict[Node, None] = {}
        leaves: dict[Value, None] = {}
        todo = list(ends)
        while todo:
            v = todo.pop()
            n = self.node(v)
            if n is None or not inside(n):
                leaves[v] = None
            elif n not in nodes:
                nodes[n] = None
                todo += n.values
        return sorted(nodes, key=self.draft.place), leaves

    def put(self, made: list[Stmt], before: Stmt, swap: Mapping[Value, Value]) -> None:
        """Put new statements in front of one, and let readers of the keys of ``swap`` read its values."""
        self.draft.insert(made, before)
        for old, new in swap.items():
            self.draft.redirect(old, new)

    def commit(self) -> None:
        """Write the statements back to the function."""
        self.draft.commit()


def is_const(v: Value) -> bool:
    """Whether a value is a tensor that the module brings along."""
    return isinstance(v, Param) and isinstance(v.weight, Const)


def constant(v: Value, consts: Consts) -> torch.Tensor:
    """The entries of such a value."""
    assert isinstance(v, Param) and isinstance(v.weight, Const)
    return consts[v.weight.name]


def is_positions(n: Node | None) -> bool:
    """Whether a node counts each token's position."""
    return n is not None and n.op is ops.positions
