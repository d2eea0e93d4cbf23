"""The place of a match: what a rewrite may ask about it, and what it may add there."""

from __future__ import annotations

from dataclasses import dataclass, field

from irloom.ir.elem import Quant
from irloom.ir.graph import Func, Module, Node, Param, Stmt, Value
from irloom.ir.types import Type
from irloom.ir.weight_expr import WeightExpr

from .core import NoMatch
from .draft import Draft


@dataclass
class Site:
    """The place of a match: its function and module, and what a rewrite may ask for or add there."""

    module: Module
    draft: Draft
    root: Node
    new_params: list[Param] = field(default_factory=list[Param])
    new_quants: dict[str, Quant] = field(default_factory=dict[str, Quant])

    @property
    def func(self) -> Func:
        """The function that is rewritten."""
        return self.draft.func

    def producer(self, v: Value) -> Node | None:
        """The node that makes ``v``, if a node does."""
        s = self.draft.producer.get(v)
        return s if isinstance(s, Node) else None

    def readers(self, v: Value) -> list[Stmt]:
        """The statements that read ``v``."""
        return list(self.draft.readers.get(v, {}))

    def weight(self, v: Value) -> WeightExpr:
        """The weight expression that ``v`` is bound to; ``NoMatch`` if it is none."""
        if not isinstance(v, Param) or v.weight is None:
            raise NoMatch(f"{v.name} is not a weight")
        return v.weight

    def new_weight(self, name: str, type: Type, expr: WeightExpr) -> Param:
        """A weight parameter of the function, bound to ``expr``. It is added when the rewrite succeeds."""
        base, n = name, 0
        while name in self.draft.taken:
            n += 1
            name = f"{base}_{n}"
        self.draft.taken.add(name)
        self.new_params.append(Param(name, type, weight=expr))
        return self.new_params[-1]

    def new_quant(self, q: Quant) -> Quant:
        """Declare a quantized element in the module header. It is added when the rewrite succeeds."""
        self.new_quants[q.name] = q
        return q

    def settle(self) -> None:
        """Add the new weights and elements to the function and the module."""
        self.func.params += self.new_params
        self.module.quants.update(self.new_quants)

    def named(self, name: str, value: Value) -> Value:
        """Name a value that ``replace`` has just made."""
        self.draft.taken.discard(value.name)
        while name in self.draft.taken:
            head, _, tail = name.rpartition("_")
            name = f"{head}_{int(tail) + 1}" if head and tail.isdigit() else f"{name}_1"
        self.draft.rename(value, name)
        return value
