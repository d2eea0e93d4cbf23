"""Keys and values behind an operand of attention: without the copies and turns that its product needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from irloom.frontends.hf.spelled.probe import Depends, Probe
from irloom.frontends.hf.spelled.seen import Lengths
from irloom.ir.errors import TraceError

MOVES = (
    "aten.view.", "aten.reshape.", "aten._unsafe_view.", "aten.transpose.", "aten.permute.",
    "aten.t.", "aten.mT.",
    "aten.unsqueeze.", "aten.squeeze.", "aten.clone.", "aten.contiguous.", "aten.alias.", "aten.detach.",
    "aten.to.", "aten._to_copy.", "aten.type_as.", "aten.flatten.", "aten.unflatten.", "aten.expand.",
    "aten.expand_as.", "aten.repeat.", "aten.repeat_interleave.", "aten.broadcast_to.",
)  # fmt: skip
COPIES = (
    "aten.expand.", "aten.expand_as.", "aten.repeat.", "aten.repeat_interleave.", "aten.broadcast_to.",
)  # fmt: skip
PLACES = (Lengths(3, 2), Lengths(5, 4))


@dataclass(frozen=True)
class Heads:
    """Keys or values [1, heads, S, features]: ``base`` with its dims in the order ``turn``, times ``scale``.

    ``cached`` says that ``base`` is what a cache write gave back.
    """

    base: Node
    turn: tuple[int, ...] | None
    count: int
    scale: float
    cached: bool


def heads(probe: Probe, operand: Node, dims: str, batch: dict[str, int], tokens: str, last: str) -> Heads:
    """The keys or values that reach a product as ``operand``, with letters ``dims``.

    ``batch`` are the sizes of the product's batch dims, ``tokens`` and ``last`` the letters of the dims of
    keys and of features. Copies of a head are traced back to the head. Raises ``TraceError`` where a cache is
    read in a way that is not one.
    """
    store = _stored(probe, operand)
    if store is not None:
        found = _arranged(probe, store, operand, dims, batch, tokens, last)
        if found is None or found.turn not in (None, (0, 1, 2, 3)):
            raise TraceError("attention reads its cache in an order that is not heads, tokens, features")
        return found
    found = None
    for base in _copied(operand):
        found = _arranged(probe, base, operand, dims, batch, tokens, last)
        if found is not None:
            return found
    found = _arranged(probe, operand, operand, dims, batch, tokens, last)
    if found is None:
        raise TraceError("attention pairs its heads in an order that has no name")
    return found


def _stored(probe: Probe, operand: Node) -> Node | None:
    """The cache read that alone determines ``operand``, beside lengths."""
    sources: set[Node] = set()
    seen: set[Node] = set()
    todo = [operand]
    while todo:
        n = todo.pop()
        if n in seen or probe.depends[n] is Depends.LENGTHS:
            continue
        seen.add(n)
        if is_cache_read(n):
            sources.add(n)
        elif not n.all_input_nodes:
            return None
        else:
            todo += n.all_input_nodes
    return sources.pop() if len(sources) == 1 else None


def is_cache_read(n: Node) -> bool:
    """Whether a node is the keys or the values that a cache write gave back."""
    writer = n.args[0] if n.args else None
    return (
        "getitem" in str(n.target)
        and isinstance(writer, Node)
        and str(writer.target).startswith("irloom.kv_store")
    )


def _copied(operand: Node) -> list[Node]:
    """What was copied per head on the way to ``operand``, the earliest first."""
    found: list[Node] = []
    n = operand
    while str(n.target).startswith(MOVES) and n.all_input_nodes:
        source = n.all_input_nodes[0]
        if str(n.target).startswith(COPIES):
            found.insert(0, source)
        n = source
    return found


def _arranged(
    probe: Probe, base: Node, operand: Node, dims: str, batch: dict[str, int], tokens: str, last: str
) -> Heads | None:
    """How ``operand`` shows the entries of ``base``, from its values when those are counted."""
    found: set[tuple[tuple[int, ...] | None, int, float]] = set()
    for at in PLACES:
        sizes = probe.sizes(base, at)
        given = torch.arange(1, prod(sizes) + 1, dtype=torch.float32).reshape(sizes)
        value = given if operand is base else probe.value(operand, at, {base: given})
        shown = _by_head(value, dims, batch, tokens, last)
        scale = float(shown.flatten()[0])
        turned = None if scale == 0 else _turn(shown.double() / scale, sizes)
        if turned is None:
            return None
        found.add((*turned, 1.0 if abs(scale - 1) < 1e-6 else scale))
    if len(found) != 1:
        return None
    turn, count, scale = found.pop()
    return Heads(base, turn, count, scale, is_cache_read(base))


def _by_head(value: Tensor, dims: str, batch: dict[str, int], tokens: str, last: str) -> Tensor:
    """[heads, tokens, features] of an operand; batch dims that it lacks are copied."""
    order = [d for d in batch if d in dims]
    value = value.permute([dims.index(d) for d in (*order, tokens, last)])
    for i, d in enumerate(batch):
        if d not in order:
            value = value.unsqueeze(i)
            order.insert(i, d)
    return value.expand(*batch.values(), -1, -1).reshape(-1, *value.shape[-2:])


def _turn(shown: Tensor, sizes: tuple[int, ...]) -> tuple[tuple[int, ...] | None, int] | None:
    """The order of the base's dims that gives [1, heads, tokens, features] of ``shown``, and how many heads.

    Copies of a head follow each other. None where there is no such order.
    """
    first = shown[:, 0, 0]
    count = int(torch.unique(first).numel())
    group = len(first) // count
    own = shown[::group]
    if len(own) != count or not torch.equal(own.repeat_interleave(group, 0), shown):
        return None
    wanted = (1, *own.shape)
    given = torch.arange(1, prod(sizes) + 1, dtype=torch.float64).reshape(sizes)
    for turn in _orders(sizes, wanted):
        if torch.allclose(given.permute(turn).reshape(wanted), own[None], rtol=1e-6, atol=0):
            return turn, count
    return None


def _orders(sizes: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders of dims after which ``sizes`` reads as ``wanted`` or reshapes to it; ones may stand anywhere."""
    from itertools import permutations

    if prod(sizes) != prod(wanted):
        return []
    big = [d for d, n in enumerate(sizes) if n != 1]
    ones = [d for d, n in enumerate(sizes) if n == 1]
    plain = tuple(range(len(sizes)))
    return [plain, *(tuple(ones) + p for p in permutations(big) if len(big) < 5)]
