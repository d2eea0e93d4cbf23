"""What a handler of an op is given: the node, its operands as tensors, the network that layers go to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from irloom.ir.dims import Dim
from irloom.ir.elem import Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Node, Param, Value
from irloom.ir.types import Type

from .layers.elementwise import Activation, Cast, ElementWise, Unary
from .layers.fill import Constant
from .layers.shape import Shuffle
from .network import Layer, NotExpressible, Tensor

if TYPE_CHECKING:
    from .open_network import OpenNetwork


@dataclass(frozen=True)
class Pair:
    """A cache of keys and values in a network, under its name; ``v`` is absent where it has keys only."""

    name: str
    k: Tensor
    v: Tensor | None


M = TypeVar("M")
Made = Tensor | Pair
Handler = Callable[["Context"], "Made | Sequence[Made]"]
LOWERINGS: dict[str, Handler] = {}


def lowers(*ops: str) -> Callable[[Handler], Handler]:
    """Register how ops become layers: the handler returns the tensor of each result.

    It raises ``NotExpressible`` for a node that must run its body; what it added by then is taken back.
    """

    def wrap(fn: Handler) -> Handler:
        for op in ops:
            if op in LOWERINGS:
                raise IRError(f"tensorrt: two lowerings of {op}")
            LOWERINGS[op] = fn
        return fn

    return wrap


@dataclass(frozen=True)
class Context:
    """One node, and the network that its layers go to. Operands go by their names in the op's definition."""

    node: Node
    to: OpenNetwork

    # operands and attributes

    def arg(self, name: str) -> Arg:
        """An operand as it stands: a value, a number, or None where it is absent."""
        at = self.node.op.operands.index(name)
        return self.node.args[at] if at < len(self.node.args) else None

    def has(self, name: str) -> bool:
        """Whether an operand is given."""
        return self.arg(name) is not None

    def type(self, name: str) -> Type:
        """The type of an operand that is a value."""
        a = self.arg(name)
        assert isinstance(a, Value), f"{self.node.op.name}: operand `{name}` is {a}"
        return a.type

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of an operand."""
        a = self.arg(name)
        assert isinstance(a, Value), f"{self.node.op.name}: operand `{name}` is {a}"
        return self.tensor(a)

    def get(self, name: str) -> Tensor | None:
        """The tensor of an operand; None where it is absent."""
        return self[name] if self.has(name) else None

    def attr(self, name: str) -> Any:
        """An attribute."""
        return self.node.attrs[name]

    @property
    def result(self) -> Type:
        """The type of the first result."""
        return self.node.results[0].type

    # what the network is given

    def tensor(self, v: Value) -> Tensor:
        """The tensor of a value; it becomes an input, or a weight, where it comes from outside."""
        if isinstance(v, Param) and v.weight is not None:
            return self.weight(v)
        made = self.to.get(v)
        assert isinstance(made, Tensor), f"`{v.name}` is a cache"
        return made

    def cache(self, name: str) -> Pair:
        """The keys and values of an operand that is a cache."""
        a = self.arg(name)
        assert isinstance(a, Value)
        made = self.to.get(a)
        assert isinstance(made, Pair), f"operand `{name}` is no cache of keys and values"
        return made

    def weight(
        self, p: Param, form: str = "", elem: Elem | None = None, dims: Sequence[int] | None = None
    ) -> Tensor:
        """A weight as it is, or in a form (see ``forms``) that has another element or other dims."""
        return self.to.weight(p, form, elem, dims)

    def step(self, name: str) -> Tensor:
        """An array of the step, one of ``STEP``."""
        return self.to.step(name)

    # what nodes share, and what they say

    def once(self, key: Hashable, make: Callable[[], M]) -> M:
        """What ``make`` gives, made the first time that the network needs it: masks, angles."""
        return self.to.once(key, make)

    def note(self, form: str) -> None:
        """Say which form was taken, and why: ``explain`` reads it."""
        self.to.notes.append(form)

    # layers

    def add(self, layer: Layer) -> Tensor:
        """Append a layer; its first output."""
        return self.all(layer)[0]

    def all(self, layer: Layer) -> tuple[Tensor, ...]:
        """Append a layer; every output."""
        return self.to.add(self.node, layer)

    def cast(self, x: Tensor, elem: Elem) -> Tensor:
        """``x`` in another element."""
        return x if x.elem == elem else self.add(Cast(x, elem))

    def reshape(self, x: Tensor, dims: Sequence[Dim]) -> Tensor:
        """The same entries under other dims."""
        return x if x.dims == tuple(dims) else self.add(Shuffle(x, tuple(dims)))

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Dim ``i`` of the result is dim ``order[i]``."""
        return x if list(order) == list(range(len(order))) else self.add(Shuffle(x, first=tuple(order)))

    def lift(self, x: Tensor, rank: int) -> Tensor:
        """``x`` with dims of 1 in front: layers broadcast between equal ranks only."""
        return self.reshape(x, (1,) * (rank - len(x.dims)) + x.dims)

    def number(self, value: float, elem: Elem, rank: int = 0) -> Tensor:
        """One value, with dims of 1."""
        return self.add(Constant.of(elem, value, rank))

    def binary(self, op: str, a: Tensor | float, b: Tensor | float) -> Tensor:
        """``a op b`` of one element, broadcast; a plain number takes the element of the other."""
        tensors = [x for x in (a, b) if isinstance(x, Tensor)]
        elem, rank = tensors[0].elem, max(len(x.dims) for x in tensors)
        a, b = (self.lift(x, rank) if isinstance(x, Tensor) else self.number(x, elem, rank) for x in (a, b))
        return self.add(ElementWise(op, a, b))

    def unary(self, op: str, x: Tensor) -> Tensor:
        """``op(x)``."""
        return self.add(Unary(op, x))

    def activation(self, op: str, x: Tensor, alpha: float | None = None, beta: float | None = None) -> Tensor:
        """``op(x)``."""
        return self.add(Activation(op, x, alpha, beta))

    def refuse(self, reason: str, hint: str = "") -> NotExpressible:
        """The error that leaves this node to its body."""
        return NotExpressible(reason, hint)
