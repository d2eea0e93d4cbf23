"""Let only the last row of each sequence reach the head.

A model computes logits for every token, but only the last one of each sequence is sampled from.
``last_rows`` moves in front of the tail of the program that works on each row alone: the final norm, the
head, its cast and softcap. ``main`` then returns ``[S, vocab]`` instead of ``[T, vocab]``, and the head
costs ``S / T`` of what it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irloom.ir.dims import Dim
from irloom.ir.elem import SEQS
from irloom.ir.graph import Builder, Func, Module, Node, Param, Stmt, Value
from irloom.ir.op import Attr
from irloom.ir.ops import last_rows
from irloom.ir.seqs import Seqs

from .core import Changes, NoMatch, Pass, spend
from .near_miss import NearMiss, if_asked

_RESHAPES = ("reshape", "expand")


@dataclass(frozen=True)
class GatherLogits(Pass):
    """No options. The first value that ``main`` returns is taken for the logits."""

    after = ("canonicalize", "raise")
    before = ("fuse-norm", "plan-memory")

    def run(self, m: Module) -> Changes:
        f = m.main
        try:
            return _gather(f)
        except NoMatch as e:
            return Changes(near_misses=[NearMiss(f"{f.name}.{f.returns[0].name}", str(e))])

    def holds(self, m: Module) -> str | None:
        logits, seqs = m.main.returns[0], next((p for p in m.main.data if p.type.elem == SEQS), None)
        every = seqs is not None and logits.type.dims[:1] == seqs.type.dims[:1]
        return f"main returns {logits}, a row for every token" if every else None

    def expected(self, m: Module, inputs: list[Any], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The last row of each sequence of the logits."""
        seqs = next((x for x in inputs if isinstance(x, Seqs)), None)
        if seqs is None or last_rows not in {n.op for n in m.main.nodes}:
            return outputs
        return (last_rows(outputs[0], seqs) if len(outputs[0]) == seqs.tokens else outputs[0], *outputs[1:])


def _gather(f: Func) -> Changes:
    logits = f.returns[0]
    seqs = next((p for p in f.data if p.type.elem == SEQS), None)
    if seqs is None:
        raise NoMatch("main has no operand of type seqs, which says where sequences end")
    tokens = seqs.type.dims[0]
    if not logits.type.dims or logits.type.dims[0] != tokens:
        there = if_asked(f"{f.name}.{logits.name}", f"{logits} has no row for every token")
        return Changes(near_misses=there)
    start, tail = _tail(f, logits, tokens)
    if not spend():
        return Changes()
    made: list[Stmt] = []
    with Builder(f, made) as b:
        b.name = "last"
        rows = last_rows(start, seqs)
    before = tail[0] if tail else None
    at = f.body.index(before) if before else len(f.body)
    f.body[at:at] = made
    for n in tail:
        n.args = [rows if a is start else a for a in n.args]
        n.attrs = {k: _resized(n, k, v, tokens, seqs) for k, v in n.attrs.items()}
        for r, t in zip(n.results, n.op.infer(n.operands, n.attrs), strict=True):
            r.type = t
    if not tail:
        f.returns[0] = rows
    return Changes([f"{f.name}.{logits.name}: last rows of {start.name}, {len(tail)} ops earlier"])


def _resized(n: Node, key: str, value: Attr, tokens: Dim, seqs: Param) -> Attr:
    if n.op.name in _RESHAPES and key == "dims" and isinstance(value, tuple):
        return (seqs.type.dims[1], *value[1:])
    return value


def _tail(f: Func, logits: Value, tokens: Dim) -> tuple[Value, list[Node]]:
    """From ``logits`` up, while rows stay apart: where that starts, and the nodes from there on."""
    producers, readers = f.producers(), f.readers()
    tail: list[Node] = []
    value = logits
    while isinstance(n := producers.get(value), Node):
        source = _source(n, tokens)
        elsewhere = [s for s in readers.get(value, []) if s not in tail]
        returned = f.returns.count(value)
        if value is logits and (elsewhere or returned > 1):
            raise NoMatch(
                f"{value.name} has another reader: {elsewhere[0].results[0].name if elsewhere else 'return'}"
            )
        if source is None or (value is not logits and (elsewhere or returned)):
            break
        tail.insert(0, n)
        value = source
    return value, tail


def _source(n: Node, tokens: Dim) -> Value | None:
    """The one operand whose rows become the result's, each alone; None if that is not how ``n`` works."""
    rows = [a for a in n.values if tokens in a.type.dims]
    if (
        len(n.results) > 1
        or len(rows) != 1
        or rows[0].type.dims[0] != tokens
        or n.result.type.dims[:1] != (tokens,)
    ):
        return None
    term = n.op.signature.ins[0 if n.op.variadic else n.args.index(rows[0])]
    if term.axes is None:
        return rows[0] if _moves_in_rows(n, rows[0].type.rank) else None
    dim = n.attrs.get("dim")
    if isinstance(dim, int) and dim % rows[0].type.rank == 0:
        return None
    fixed = sum(not a.variadic for a in term.axes)
    return rows[0] if fixed < len(term.axes) and fixed < rows[0].type.rank <= n.result.type.rank else None


def _moves_in_rows(n: Node, rank: int) -> bool:
    """Whether an op whose dims follow from attributes leaves the leading dim alone."""
    dims, dim = n.attrs.get("dims"), n.attrs.get("dim")
    if isinstance(dim, int):
        return dim % rank != 0
    return n.op.name in _RESHAPES or (n.op.name == "permute" and isinstance(dims, tuple) and dims[0] == 0)
