"""In-place ops: the IR has none, so what is written into one view is rebuilt for all of that memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph
from torch.fx import Node as FxNode

from irloom.frontends.hf.aten.constants import new_full
from irloom.frontends.hf.aten.core import Stored, as_elem, tensor
from irloom.frontends.hf.aten.shape import expand
from irloom.frontends.hf.aten.write import replaced
from irloom.frontends.hf.views import View, reshape
from irloom.ir.elem import Elem
from irloom.ir.errors import TraceError


class Memory:
    """Which nodes of a captured graph lie in the same memory.

    A node is a view of its first operand if their fake tensors have one storage.
    """

    def __init__(self, graph: Graph) -> None:
        self.roots: dict[FxNode, FxNode] = {}
        self.sharing: dict[FxNode, list[FxNode]] = defaultdict(list)
        for node in graph.nodes:
            base = self.base(node)
            self.roots[node] = node if base is None else self.roots[base]
            self.sharing[self.roots[node]].append(node)

    def root(self, node: FxNode) -> FxNode:
        """The tensor that a node is a view of, through all views between; itself if it is none."""
        return self.roots[node]

    def base(self, node: FxNode) -> FxNode | None:
        """What a node is a view of directly; None for a tensor of its own."""
        first = node.args[0] if node.args else None
        if not isinstance(first, FxNode):
            return None
        ours, its = (_storage(n) for n in (node, first))
        return first if ours is not None and ours == its else None

    def write(
        self,
        node: FxNode,
        result: Any,
        env: dict[FxNode, Any],
        again: Callable[[FxNode], Any],
        read: Callable[[Any], Any],
    ) -> None:
        """Let everything that shares memory with the target of in-place op ``node`` show its ``result``.

        ``again`` translates a view anew; ``read`` gives the values of a node's arguments.
        """
        target = node.args[0]
        assert isinstance(target, FxNode)
        value = _fitted(_own(result), tensor(_own(env[target])))
        chain = [target]
        env[target] = env[node] = _like(env[target], value)
        while (base := self.base(chain[-1])) is not None:
            value = written(chain[-1], tensor(_own(env[base])), value, read)
            env[base] = _like(env[base], value)
            chain.append(base)
        if chain[-1].op == "placeholder":
            raise TraceError(
                f"op `{node.target}` changes a weight or an input of the model",
                hint="an out-of-place op traces",
            )
        for view in self.sharing[self.roots[target]]:
            if view in env and view not in chain and view is not node:
                first = view.args[0]
                env[view] = env[first] if in_place(view) and isinstance(first, FxNode) else again(view)


def _storage(node: FxNode) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def in_place(node: FxNode) -> bool:
    """Whether an op changes its operand."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _own(x: Any) -> Any:
    """Of a cache as attention sees it, this step's tokens."""
    return x.view if isinstance(x, Stored) else x


def _like(old: Any, new: View) -> Any:
    return Stored(new, old.layer) if isinstance(old, Stored) else new


def _fitted(result: Any, target: View) -> View:
    """A written value in the dims and the element of what it is written to."""
    value = result if isinstance(result, View) else new_full(target, target.dims, result)
    elem = target.value.type.elem
    value = as_elem(value, elem) if isinstance(elem, Elem) else value
    return value if value.dims == target.dims else expand(value, target.dims)


def written(node: FxNode, base: View, part: View, read: Callable[[Any], Any]) -> View:
    """``base`` after ``part`` was written into the view of it that ``node`` is."""
    kind = str(node.target).split(".")[1] if isinstance(node.target, torch._ops.OpOverload) else "item"
    rest = [read(arg) for arg in node.args[1:]]
    if part.dims == base.dims and kind not in ("transpose", "permute", "t", "mT"):
        return part
    match kind:
        case "view" | "reshape" | "_unsafe_view" | "flatten" | "unflatten":
            return reshape(part, base.dims)
        case "transpose":
            return part.swapped(rest[0], rest[1])
        case "t" | "mT" | "numpy_T":
            return part.swapped(-1, -2)
        case "permute":
            places = [base.dim(d) for d in rest[0]]
            return part.permuted([places.index(d) for d in range(base.rank)])
        case "unsqueeze" | "squeeze":
            return reshape(part, base.dims)
        case "select":
            return replaced(base, rest[0], rest[1], part.unsqueezed(base.dim(rest[0])), 1)
        case "slice":
            given = dict(zip(("dim", "start", "end", "step"), rest, strict=False))
            return replaced(base, given.get("dim", 0), given.get("start") or 0, part, given.get("step", 1))
        case _:
            raise TraceError(
                f"what is written through `{node.target}` is lost", hint="an out-of-place op traces"
            )
