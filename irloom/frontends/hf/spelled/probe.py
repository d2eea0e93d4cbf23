"""Concrete values of a captured graph: what depends on lengths and constants only, run on the CPU.

A mask, a bias or a count of tokens can be spelled in any number of ways. Instead of reading the spelling, the
frontend runs it for a few numbers of new and cached tokens and looks at what comes out.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from irloom.frontends.hf.memory import in_place
from irloom.frontends.hf.spelled.seen import Lengths, TooLarge, dense_mask
from irloom.ir.errors import TraceError

HALVES = {torch.float16, torch.bfloat16}
"""Run in f32 here: a value is asked what it means, not how it was rounded."""

MOST = 1 << 25
"""Entries of the largest tensor that a probe may make."""

SHAPED = (
    "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.new_zeros",
    "aten.new_ones", "aten.new_full", "aten.new_empty", "aten.sym_size",
)  # fmt: skip
"""Ops that read the shape and type of their operand, not its entries."""

LIKE = ("aten.expand_as.", "aten.view_as.", "aten.reshape_as.", "aten.type_as.")
"""Ops that read the entries of their first operand, and the shape and type of the second."""


class Depends(enum.IntEnum):
    """What the value of a node depends on, beside the numbers of tokens; the larger, the more."""

    LENGTHS = 0
    WEIGHTS = 1
    TOKENS = 2


class Probe:
    """Runs parts of a captured graph for given lengths. ``survey`` again after the graph has changed.

    ``symbols`` are torch's names for the tokens of a step and for those cached; ``constant`` gives the value
    of an input that is a buffer or constant of the model, None for a weight; ``refused`` says of an error at
    which node of the model it happened; ``padding`` are the ids that stand for no token.
    """

    def __init__(
        self,
        graph: Graph,
        symbols: tuple[str, str],
        constant: Callable[[Node], Tensor | None],
        refused: Callable[[TraceError, Node], TraceError],
        padding: Collection[int] = (),
    ) -> None:
        self.graph, self.symbols, self.constant, self.refused = graph, symbols, constant, refused
        self.padding = padding
        self.memo: dict[Lengths, dict[Node, Any]] = defaultdict(dict)
        self.survey()

    @contextmanager
    def at(self, node: Node) -> Iterator[None]:
        """Errors inside happened at ``node``."""
        try:
            yield
        except TraceError as error:
            raise self.refused(error, node) from error

    def survey(self) -> None:
        """Find out what every node depends on, and which nodes write into the memory of another."""
        self.depends: dict[Node, Depends] = {}
        self.roots: dict[Node, Node] = {}
        self.writers: dict[Node, list[Node]] = defaultdict(list)
        self.place = {node: float(at) for at, node in enumerate(self.graph.nodes)}
        sharing: dict[Node, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            self.depends[node] = self._depends(node)
            source = node.args[0] if _is_view(node) and node.args else None
            self.roots[node] = self.roots[source] if isinstance(source, Node) else node
            sharing[self.roots[node]].append(node)
            if in_place(node):
                self.writers[self.roots[node]].append(node)
                for other in sharing[self.roots[node]]:
                    self.depends[other] = max(self.depends[other], self.depends[node])

    def follow(self, node: Node, after: Node) -> None:
        """Take note of a node that was put into the graph after another, until the next survey."""
        self.place[node] = self.place[after] + 1e-4
        self.depends[node], self.roots[node] = self._depends(node), node

    def _depends(self, node: Node) -> Depends:
        name = str(node.target)
        if node.op == "placeholder":
            return self._input(node)
        if isinstance(node.meta.get("val"), torch.SymInt | int) or name.startswith(SHAPED):
            return Depends.LENGTHS
        if node.op != "call_function" or name.startswith(("irloom.kv_store", "irloom.attention.")):
            return Depends.TOKENS
        if self._not_padding(node):
            return Depends.LENGTHS
        return max((self.depends[n] for n in self._operands(node)), default=Depends.LENGTHS)

    def _input(self, node: Node) -> Depends:
        if node.name in ("position_ids", "past"):
            return Depends.LENGTHS
        if node.name == "input_ids":
            return Depends.TOKENS
        return Depends.LENGTHS if self.constant(node) is not None else Depends.WEIGHTS

    def _not_padding(self, node: Node) -> bool:
        """Whether a node asks which ids are no padding: all are, for packed sequences have none."""
        if str(node.target) != "aten.ne.Scalar":
            return False
        ids, number = node.args[:2]
        return isinstance(ids, Node) and ids.name == "input_ids" and number in self.padding

    def sizes(self, node: Node, at: Lengths) -> tuple[int, ...]:
        """The dims of a node's result."""
        return tuple(self.size(d, at) for d in node.meta["val"].shape)

    def size(self, dim: int | torch.SymInt, at: Lengths) -> int:
        """A size for these lengths."""
        if isinstance(dim, int):
            return dim
        names = dict(zip(self.symbols, (at.tokens, at.past), strict=True))
        expr = dim.node.expr
        return int(expr.subs({s: names[str(s)] for s in expr.free_symbols if str(s) in names}))

    def value(self, node: Node, at: Lengths, given: Mapping[Node, Tensor] | None = None) -> Any:
        """What ``node`` is for these lengths, when the nodes ``given`` have these values.

        Weights get random values. Raises ``Unknown`` where it depends on tokens, or is too large.
        """
        fresh: dict[Node, Any] = {n: x.clone() for n, x in (given or {}).items()}
        order = self.needed(node, fresh)
        kept = {} if any(in_place(n) for n in order) else self.memo[at]

        def read(n: Node) -> Any:
            return fresh[n] if n in fresh else kept.get(n)

        for n in order:
            if n not in kept:
                args, kwargs = map_arg((n.args, n.kwargs), read)
                new = fresh if any(i in fresh for i in n.all_input_nodes) else kept
                new[n] = self._run(n, args, kwargs, at)
        return read(node)

    def needed(self, node: Node, given: Container[Node] = ()) -> list[Node]:
        """Nodes to run for ``node`` when those ``given`` are known, in order."""
        found: set[Node] = set()
        todo = [node]
        while todo:
            n = todo.pop()
            if n in found or n in given:
                continue
            found.add(n)
            todo += self.writers.get(self.roots[n], [])
            todo += self._operands(n)
        return sorted(found, key=lambda n: self.place[n])

    def _operands(self, n: Node) -> list[Node]:
        """The operands whose entries count."""
        if isinstance(n.meta.get("val"), torch.SymInt | int) or self._not_padding(n):
            return []
        at = _shape_only(n)
        if at is None or at >= len(n.args):  # an operand given by its name counts whole
            return list(n.all_input_nodes)
        return [i for i in n.all_input_nodes if i is not n.args[at] or i in n.args[:at]]

    def _run(self, n: Node, args: Any, kwargs: Any, at: Lengths) -> Any:
        fake = n.meta.get("val")
        if isinstance(fake, torch.SymInt | int):
            return self.size(fake, at)
        if isinstance(fake, Tensor) and torch.Size(self.sizes(n, at)).numel() > MOST:
            raise UnknownTooLarge(n, "is too large to look at")
        if n.op == "placeholder":
            return self._given_input(n, at)
        if self._not_padding(n):
            return torch.ones(self.sizes(n, at), dtype=torch.bool)
        if str(n.target) == "irloom.attention_mask.default":
            return dense_mask(*args[:4])
        if n.op != "call_function" or str(n.target).startswith("irloom."):
            raise Unknown(n, "depends on the tokens")
        place = _shape_only(n)
        if place is not None and isinstance(like := n.args[place], Node):
            empty = torch.empty(self.sizes(like, at), dtype=_dtype(like))
            args = (*args[:place], empty, *args[place + 1 :])
        made = _widened(n.target(*_plain(args), **_plain(kwargs)))  # type: ignore[operator]
        if isinstance(fake, Tensor) and tuple(made.shape) != self.sizes(n, at):
            raise Unknown(n, f"is {list(made.shape)} for {at.past + at.tokens} tokens: a table ends")
        return made

    def _given_input(self, n: Node, at: Lengths) -> Any:
        if n.name == "position_ids":
            return at.past + torch.arange(at.tokens)[None]
        if n.name == "input_ids":
            raise Unknown(n, "is the tokens")
        value = self.constant(n)
        if value is not None:
            return _widened(value)
        generator = torch.Generator().manual_seed(int(self.place[n]))
        return torch.randn(self.sizes(n, at), generator=generator)


class Unknown(TraceError):
    """A value that lengths and constants do not determine."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(f"`{node.target}` {why}")
        self.node = node


class UnknownTooLarge(Unknown, TooLarge):
    """A value that is determined, and takes too much memory."""


def _shape_only(node: Node) -> int | None:
    """The place of the operand whose entries an op does not read."""
    name = str(node.target)
    return 0 if name.startswith(SHAPED) else 1 if name.startswith(LIKE) else None


def _is_view(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.op != "call_function":
        return False
    return any(r.alias_info is not None for r in node.target._schema.returns)


def _dtype(node: Node) -> torch.dtype:
    dtype = node.meta["val"].dtype
    return torch.float32 if dtype in HALVES else dtype


def _widened(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(_widened(i) for i in x)
    return x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x


def _plain(x: Any) -> Any:
    """Arguments as they are on the CPU in f32."""
    match x:
        case list() | tuple():
            return type(x)(_plain(i) for i in x)
        case dict():
            return {k: _plain(v) for k, v in x.items()}
        case torch.dtype() if x in HALVES:
            return torch.float32
        case torch.device():
            return torch.device("cpu")
        case _:
            return x


def literals(nodes: Iterable[Node]) -> Iterator[int]:
    """Integers that a part of a graph was written with, sizes of its constants included."""
    for node in nodes:
        if node.op == "placeholder":
            yield from (d for d in node.meta["val"].shape if isinstance(d, int))
        else:
            yield from (a for a in (*node.args, *node.kwargs.values()) if type(a) is int)
