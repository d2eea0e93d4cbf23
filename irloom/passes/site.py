"""The place of a match: what a rewrite may ask about it, and what it may add there."""

from __future__ import annotations

from dataclasses import dataclass, field

from irloom.ir.elem import Quant
from irloom.ir.graph import Func, Module, Node, Param, Stmt, Value, take_name
from irloom.ir.types import Type
from irloom.ir.weight_expr import WeightExpr

from .core import NoMatch
from .draft import Draft
from .fold_weights import folded_node


@dataclass
class Site:
    """The place of a match: its function and module, and what a rewrite may ask for or add there.

    ``made`` are the statements of the replacement so far.
    """

    module: Module
    draft: Draft
    root: Node
    made: list[Stmt] = field(default_factory=list[Stmt])
    new_params: list[Param] = field(default_factory=list[Param])
    new_quants: dict[str, Quant] = field(default_factory=dict[str, Quant])
    folded: dict[Value, Value] = field(default_factory=dict[Value, Value])

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
        self.new_params.append(Param(take_name(name, self.draft.taken), type, weight=expr))
        return self.new_params[-1]

    def fold(self, v: Value, name: str = "") -> Param:
        """The weight that ``v`` is, which ``replace`` has just computed of weights alone.

        ``linear(x, site.fold(concat(wq, wk, dim=0)))``: the two are joined when an engine is built, and no
        step joins them. The weight is called ``name``, or as ``v``. ``NoMatch`` where no expression of
        weights says what was computed.
        """
        for s in self.made:
            found = folded_node(s, self.folded) if isinstance(s, Node) else None
            if found is not None and not self.folded.keys() & set(s.results):
                exprs = zip(s.results, found[0], strict=True)
                self.folded.update((r, Param(r.name, r.type, weight=e)) for r, e in exprs)
        known = self.folded.get(v, v)
        if not isinstance(known, Param):
            raise NoMatch(f"{v.name} is computed of more than weights, or in a way that no weight is read")
        return known if known is v else self.new_weight(name or v.name, v.type, self.weight(known))

    def new_quant(self, q: Quant) -> Quant:
        """Declare a quantized element in the module header. It is added when the rewrite succeeds."""
        self.new_quants[q.name] = q
        return q

    def settle(self) -> None:
        """Add the new weights and elements to the function and the module; drop what was folded into them."""
        for s in self.made[::-1]:
            read = {v for other in self.made if other is not s for v in other.values}
            if all(r in self.folded and r not in read for r in s.results):
                self.made.remove(s)
                self.draft.taken.difference_update(r.name for r in s.results)
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
