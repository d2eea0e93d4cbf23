"""Counts of tokens and rows of position tables, by value: what equals the positions becomes the positions.

In a packed batch every sequence starts over, so nothing may count the tokens of the batch. However a model
numbers its tokens (a range, a running sum of a mask, a slice of a table), what comes out is the number of
cached tokens plus 0, 1, 2 ... plus a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from irloom.frontends.hf.spelled.probe import Depends, Probe
from irloom.frontends.hf.spelled.seen import Lengths
from irloom.frontends.hf.spelled.spine import live_nodes
from irloom.ir.errors import TraceError

aten = torch.ops.aten
FILLED = ("aten.full.", "aten.zeros.", "aten.ones.")
ACROSS = ("aten.cumsum.", "aten.flip.", "aten.cumprod.", "aten.gather.")
ROWS = ("aten.slice.Tensor", "aten.narrow.default", "aten.gather.default", "aten.index_select.default")

NEAR, FAR = (Lengths(5, 3), Lengths(7, 12)), Lengths(3, 997)
ALONE, FAR_ALONE = (Lengths(8, 0), Lengths(19, 0)), Lengths(1000, 0)
"""Where values are looked at; without a cache there is none before the step's tokens."""


def raise_positions(probe: Probe) -> int:
    """Rewrite a graph in place; how many values were positions, or rows of a table at positions."""
    given = next((n for n in probe.graph.nodes if n.op == "placeholder" and n.name == "position_ids"), None)
    if given is None:
        return 0
    live = live_nodes(probe)
    cached = any(str(n.target).startswith("irloom.kv_store") for n in live)
    done = 0
    for node in [*_counting(probe, live)]:
        found = _as_positions(probe, node, given, cached)
        if found is not None:
            found.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(found)
            done += 1
    if done:
        probe.survey()
    return done


def _counting(probe: Probe, live: set[Node]) -> Iterator[Node]:
    """Nodes with an entry or a row per token that are no function of the given positions alone.

    Asked for one at a time: what has been replaced meanwhile is a function of the positions.
    """
    made: set[Node] = set()
    for node in list(probe.graph.nodes):
        known = node in live and node.op == "call_function" and probe.depends[node] is not Depends.TOKENS
        if not known or _token_dim(node) is None or str(node.target).startswith(FILLED):
            continue
        sources = [i for i in node.all_input_nodes if _token_dim(i) is not None]
        if not sources or str(node.target).startswith(ACROSS) or any(i in made for i in sources):
            made.add(node)
            yield node


def _token_dim(node: Node) -> int | None:
    """The one dim of a node's result that is not an integer."""
    fake = node.meta.get("val")
    if not isinstance(fake, Tensor):
        return None
    found = [d for d, n in enumerate(fake.shape) if not isinstance(n, int)]
    return found[0] if len(found) == 1 else None


def _as_positions(probe: Probe, node: Node, given: Node, cached: bool) -> Node | None:
    """``node`` said with the positions ``given``, or None."""
    near, far = (NEAR, FAR) if cached else (ALONE, FAR_ALONE)
    shown: dict[Lengths, Tensor] = {}
    for at in (*near, far):
        with suppress(TraceError, RuntimeError, IndexError):  # past the end of a table
            shown[at] = probe.value(node, at)
    if not shown.keys() >= set(near):
        return None
    build = _Chain(probe, node)
    ahead = {float(x.flatten()[0]) - at.past for at, x in shown.items()}
    first = min(ahead)
    if len(ahead) == 1 and first == int(first) and all(_counts(x, at, first) for at, x in shown.items()):
        return build.positions(given, int(first), node)
    value = shown[near[0]].flatten()[0]
    if all(torch.equal(x, value.expand(x.shape)) for x in shown.values()):
        return build.filled(given, value.item(), node)
    return _rows(probe, node, given, shown, build) if str(node.target) in ROWS else None


def _counts(x: Tensor, at: Lengths, first: float) -> bool:
    """Whether ``x`` is the positions plus ``first``."""
    counted = first + at.past + torch.arange(at.tokens)
    return x.numel() == at.tokens and torch.equal(x.flatten().double(), counted.double())


def _rows(probe: Probe, node: Node, given: Node, shown: dict[Lengths, Tensor], build: _Chain) -> Node | None:
    """A slice of a table as its rows at the positions."""
    table, at_dim = node.args[0], _token_dim(node)
    if not isinstance(table, Node) or at_dim is None or _token_dim(table) is not None:
        return None
    dims = list(table.meta["val"].shape)
    width = dims[-1] if at_dim != len(dims) - 1 else 1
    rest = [n for d, n in enumerate(dims[: -1 if width != 1 else None]) if d != at_dim]
    if len(dims) != node.meta["val"].ndim or any(n != 1 for n in rest):
        return None
    ahead: set[int] | None = None
    for at, rows in shown.items():
        whole, part = probe.value(table, at).reshape(-1, width), rows.reshape(-1, width)
        if len(part) != at.tokens:
            return None
        starts = {i for i in range(len(whole) - len(part) + 1) if torch.equal(whole[i : i + len(part)], part)}
        here = {i - at.past for i in starts}
        ahead = here if ahead is None else ahead & here
    if not ahead:
        return None
    flat = build(aten.reshape.default, table, [dims[at_dim], width])
    places = build(aten.reshape.default, given, [-1])
    if first := min(ahead, key=abs):
        places = build(aten.add.Tensor, places, first)
    rows = build(aten.embedding.default, flat, places)
    return build(aten.reshape.default, rows, [-1 if d == at_dim else n for d, n in enumerate(dims)])


class _Chain:
    """Adds nodes one after the other, where the model has ``old``."""

    def __init__(self, probe: Probe, old: Node) -> None:
        self.probe, self.old, self.last = probe, old, old

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        with self.probe.graph.inserting_after(self.last):
            node = self.probe.graph.call_function(op, args, kwargs)
        node.meta = {k: v for k, v in self.old.meta.items() if k in ("nn_module_stack", "stack_trace")}
        self.probe.follow(node, self.last)
        self.last = node
        return node

    def positions(self, given: Node, ahead: int, like: Node) -> Node:
        """The positions plus ``ahead``, in the dims and type of ``like``."""
        out = self(aten.reshape.default, given, _sizes(like))
        if ahead:
            out = self(aten.add.Tensor, out, ahead)
        dtype = like.meta["val"].dtype
        return out if dtype == torch.int64 else self(aten.to.dtype, out, dtype)

    def filled(self, given: Node, value: float, like: Node) -> Node:
        """The same value in all entries, in the dims and type of ``like``."""
        count = self(aten.sym_size.int, given, 1)
        count.meta["val"] = given.meta["val"].shape[1]
        sizes = [count if n == -1 else n for n in _sizes(like)]
        return self(aten.full.default, sizes, value, dtype=like.meta["val"].dtype)


def _sizes(node: Node) -> list[int]:
    return [n if isinstance(n, int) else -1 for n in node.meta["val"].shape]
