"""Products of two tensors in a captured graph, whichever op spells them, with a letter for each dim."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

from torch.fx import Node

MATMULS = ("aten.matmul.default", "aten.bmm.default", "aten.mm.default")


@dataclass(frozen=True)
class Product:
    """``out = left . right``, summed over the letters that ``out`` lacks.

    Dims that broadcast have one letter. ``baddbmm`` also adds ``beta`` times ``added`` to ``alpha`` times the
    product.
    """

    node: Node
    left: Node
    right: Node
    left_dims: str
    right_dims: str
    out_dims: str
    added: Node | None = None
    beta: float = 1.0
    alpha: float = 1.0

    def other(self, operand: Node) -> tuple[Node, str]:
        """The operand that is not ``operand``, and its dims."""
        return (self.right, self.right_dims) if operand is self.left else (self.left, self.left_dims)

    def dims(self, operand: Node) -> str:
        """The dims of an operand."""
        return self.left_dims if operand is self.left else self.right_dims


def product(node: Node) -> Product | None:
    """``node`` as a product of two tensors of three or more dims, or None."""
    name = str(node.target)
    if name in MATMULS:
        left, right = node.args[:2]
        return _matmul(node, left, right)
    if name == "aten.baddbmm.default":
        added, left, right = node.args[:3]
        beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
        found = _matmul(node, left, right)
        if found is None or not isinstance(added, Node) or isinstance(beta, Node) or isinstance(alpha, Node):
            return None
        return Product(
            node, found.left, found.right, found.left_dims, found.right_dims, found.out_dims,
            added, float(beta), float(alpha),  # type: ignore[arg-type]
        )  # fmt: skip
    if name == "aten.einsum.default":
        return _einsum(node)
    return None


def _matmul(node: Node, left: object, right: object) -> Product | None:
    if not isinstance(left, Node) or not isinstance(right, Node):
        return None
    ranks = [n.meta["val"].ndim for n in (left, right)]
    if min(ranks) < 3:
        return None
    batch = ascii_uppercase[: max(ranks) - 2]
    a, b = (batch[len(batch) - rank + 2 :] for rank in ranks)
    return Product(node, left, right, a + "ik", b + "kj", batch + "ij")


def _einsum(node: Node) -> Product | None:
    equation, operands = node.args[:2]
    if not isinstance(equation, str) or not isinstance(operands, list | tuple) or len(operands) != 2:
        return None
    left, right = operands
    ins, arrow, out = equation.replace(" ", "").partition("->")
    a, _, b = ins.partition(",")
    if not arrow or "." in equation or not isinstance(left, Node) or not isinstance(right, Node):
        return None
    whole = len({*a}) == len(a) and len({*b}) == len(b) and {*out} <= {*a, *b}
    return Product(node, left, right, a, b, out) if whole and min(len(a), len(b)) > 2 else None
