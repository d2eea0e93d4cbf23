"""Find attention that a model spells out, ``softmax(q @ k.T ...) @ v``, in a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from irloom.frontends.hf.spelled.probe import Depends, Probe, Unknown
from irloom.frontends.hf.spelled.product import Product, product
from irloom.frontends.hf.spelled.seen import Lengths
from irloom.ir.errors import TraceError

SOFTMAX = (
    "aten.softmax.int",
    "aten._softmax.default",
    "aten._safe_softmax.default",
    "aten.special_softmax.int",
)
SDPA = "aten.scaled_dot_product_attention.default"


@dataclass(frozen=True)
class Spine:
    """An attention: the product that makes scores, their softmax, and the product with values."""

    scores: Product
    softmax: Node
    values: Product
    weights: Node
    """The operand of ``values`` that comes from the softmax."""

    @property
    def query(self) -> Node:
        """The operand that has the rows of the scores."""
        row = self.scores.out_dims[-2]
        return self.scores.left if row in self.scores.left_dims else self.scores.right

    @property
    def batch(self) -> dict[str, int]:
        """Sizes of the leading dims of the scores, by letter."""
        dims = self.scores.node.meta["val"].shape
        return {d: int(n) for d, n in zip(self.scores.out_dims[:-2], dims[:-2], strict=True)}

    def chain(self, probe: Probe) -> Callable[[Lengths, Callable[[tuple[int, ...]], Tensor]], Tensor]:
        """Runs what lies between the two products' ends and the softmax; see ``scores.Chain``."""
        first = self.scores

        def run(at: Lengths, make: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
            sizes = probe.sizes(first.node, at)
            by_head = (torch.Size(sizes[:-2]).numel(), *sizes[-2:])
            scores = make(by_head).reshape(sizes)
            if first.added is not None and first.beta:
                scores = first.beta * probe.value(first.added, at).float() + first.alpha * scores
            elif first.alpha != 1:
                scores = first.alpha * scores
            before = self.softmax.args[0]
            assert isinstance(before, Node)
            return probe.value(before, at, {first.node: scores}).float().reshape(by_head)

        return run


def spines(probe: Probe) -> Iterator[Spine]:
    """The attentions of a graph. Softmaxes over anything but tokens are none.

    Raises ``TraceError`` at an attention over tokens whose scores are changed by what depends on tokens.
    """
    live = live_nodes(probe)
    for node in list(probe.graph.nodes):
        if node in live and str(node.target) in SOFTMAX and _over_tokens(node):
            ends = _values(node, live)
            starts = _scores(node, probe)
            if ends is not None and starts is not None:
                yield Spine(starts, node, *ends)


def live_nodes(probe: Probe) -> set[Node]:
    """Nodes that the output depends on."""
    live: set[Node] = set()
    for node in reversed(probe.graph.nodes):
        if node.op == "output" or any(user in live for user in node.users):
            live.add(node)
    return live


def _over_tokens(softmax: Node) -> bool:
    fake, dim = softmax.meta["val"], softmax.args[1]
    return fake.ndim >= 3 and dim in (-1, fake.ndim - 1) and isinstance(fake.shape[-1], torch.SymInt)


def _values(softmax: Node, live: set[Node]) -> tuple[Product, Node] | None:
    """The product that the softmax goes to, and its operand that comes from it."""
    n = softmax
    while True:
        users = [u for u in n.users if u in live and "_assert" not in str(u.target)]
        if len(users) != 1:
            return None
        found = product(users[0])
        if found is not None:
            return (found, n) if found.left is not found.right else None
        n = users[0]
        if n.op != "call_function":
            return None


def _scores(softmax: Node, probe: Probe) -> Product | None:
    """The product that alone feeds the softmax, beside what depends on lengths."""
    n = softmax
    while True:
        changing = [i for i in n.all_input_nodes if probe.depends[i] is not Depends.LENGTHS]
        if len(changing) != 1:
            return None
        n = changing[0]
        found = product(n)
        if found is not None and Depends.TOKENS in (probe.depends[found.left], probe.depends[found.right]):
            return found
        if n.op != "call_function":
            return None


def same_weights(spine: Spine, probe: Probe) -> None:
    """Check that nothing happens to the softmax on its way to the values."""
    if spine.weights is spine.softmax:
        return
    for at in (Lengths(3, 2), Lengths(5, 4)):
        given = torch.rand(probe.sizes(spine.softmax, at), generator=torch.Generator().manual_seed(0))
        try:
            shown = probe.value(spine.weights, at, {spine.softmax: given})
        except Unknown as error:
            raise TraceError("attention mixes its weights with what depends on tokens") from error
        if not torch.equal(shown.float().flatten(), given.flatten()):
            raise TraceError("attention changes its weights after the softmax")
