"""Where every entry of a value comes from, through all ops that only move entries.

Models reshape, permute, cut, repeat and join in many ways that mean the same. Instead of a pattern for each,
the ops themselves are run, on numbers that name entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from irloom.ir.dims import evaluate, product, symbols
from irloom.ir.elem import SEQS, Elem
from irloom.ir.graph import Node, Stmt, Value
from irloom.ir.interp import apply_node
from irloom.ir.ops import concat, expand, permute, reshape, slice_, split
from irloom.ir.types import Type

from .draft import Draft

MOVES = (reshape, permute, expand, slice_, split, concat)
TOKENS = 3
"""How many tokens the ops are run on: so few that it is cheap, enough to tell them from other dims."""


@dataclass
class Origins:
    """``seen`` holds of each value the number i64[dims] of every entry.

    ``leaves`` are the values that no move makes, with the number of their first entry.
    """

    tokens: str
    producers: dict[Value, Stmt]
    seen: dict[Value, torch.Tensor] = field(default_factory=dict[Value, torch.Tensor])
    leaves: dict[Value, int] = field(default_factory=dict[Value, int])
    count: int = 0

    @staticmethod
    def of(d: Draft) -> Origins:
        """For a function whose ``seqs`` say what its tokens are called."""
        names = [str(p.type.dims[0]) for p in d.func.data if p.type.elem == SEQS]
        return Origins(names[0] if names else "T", d.producer)

    def trace(self, v: Value) -> torch.Tensor | None:
        """The numbers of the entries of ``v``; None where its dims depend on more than the tokens."""
        todo = [v]
        while todo:
            at = todo[-1]
            made = self.producers.get(at)
            moves = isinstance(made, Node) and made.op in MOVES
            inner = [x for x in made.values if x not in self.seen] if isinstance(made, Node) and moves else []
            if at in self.seen or not inner:
                todo.pop()
            if inner:
                todo += inner
            elif at not in self.seen:
                if not self._sized(at.type):
                    return None
                if isinstance(made, Node) and moves:
                    outs = apply_node(made, [self.seen[x] for x in made.values], {self.tokens: TOKENS})
                    self.seen.update(zip(made.results, outs, strict=True))
                else:
                    self._leaf(at)
        return self.seen[v]

    def source(self, number: int) -> tuple[Value, int]:
        """The leaf that an entry comes from, and where in it, counted row by row."""
        leaf = max((v for v, base in self.leaves.items() if base <= number), key=self.leaves.__getitem__)
        return leaf, number - self.leaves[leaf]

    def find(self, numbers: torch.Tensor) -> Value | None:
        """A value that was traced and holds exactly these entries, in this order."""
        flat = numbers.flatten()
        return next(
            (v for v, x in self.seen.items() if x.numel() == len(flat) and x.flatten().equal(flat)), None
        )

    def _sized(self, t: Type) -> bool:
        return isinstance(t.elem, Elem) and all(symbols(d) <= {self.tokens} for d in t.dims)

    def _leaf(self, v: Value) -> None:
        dims = [evaluate(d, {self.tokens: TOKENS}) for d in v.type.dims]
        size = evaluate(product(dims), {})
        self.leaves[v] = self.count
        self.seen[v] = torch.arange(self.count, self.count + size).reshape(dims)
        self.count += size
