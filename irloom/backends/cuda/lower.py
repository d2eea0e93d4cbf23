"""Lowering: each function of a module becomes launches of kernels.

What a product reads and what becomes of its result is part of it: a norm, and the rounding of activations, in
front (its *prologue*), a gate or a sum behind. So few rows go through one kernel from residual stream to
residual stream; many rows go through these parts one after another, which the product sees to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from irloom.ir.buffers import storage
from irloom.ir.elem import Elem, Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Call, Func, Loop, Module, Node, Param, Stmt, Value

from .program import BODY, Function, Launch, Program, Same, Step, View, lies_alone

Handler = Callable[["Lowering", Node], bool]
HANDLERS: dict[str, Handler] = {}
VIEWS = ("reshape", "split", "slice")
PRODUCTS = ("linear", "linear_act")


def lowers(*ops: str) -> Callable[[Handler], Handler]:
    """Register how ops become launches; a handler gives False to leave a node to its body."""

    def wrap(fn: Handler) -> Handler:
        for op in ops:
            if op in HANDLERS:
                raise IRError(f"cuda: two lowerings of {op}")
            HANDLERS[op] = fn
        return fn

    return wrap


def lower(m: Module) -> Program:
    """The program of a module whose pipeline has run."""
    own_handlers()
    called = {"main", *(c.callee for c, _, _ in m.calls())}
    declined: dict[str, str] = {}
    made = {f.name: Lowering(m, f, declined).function() for f in m.funcs.values() if f.name in called}
    return Program(m, made, declined)


def own_handlers() -> None:
    """Import what lowers irloom's own ops."""
    from irloom.backends.cuda import (
        lower_elementwise,
        lower_experts,
        lower_moves,
        lower_products,
        lower_recurrent,
        lower_routers,
        lower_rows,
    )

    own = lower_elementwise, lower_experts, lower_moves, lower_products, lower_recurrent
    own = *own, lower_routers, lower_rows
    assert all(own), "imported for their handlers"


@dataclass(frozen=True)
class Prologue:
    """What stands for a value that a product makes itself: ``x``, normed, and rounded to ``quant``; of many
    rows by the product that has ``emitted`` them.
    """

    x: Arg
    norm: Arg = None
    eps: float | None = None
    quant: Quant | None = None
    emitted: bool = False

    @property
    def normed(self) -> bool:
        return self.eps is not None


class Lowering:
    """Lowers one function. ``prologues`` are values that nothing makes, since products do;
    ``summed`` are the sums, by the node that a product has taken them from; ``renamed`` what products make in
    place of their own results.
    """

    def __init__(self, m: Module, f: Func, declined: dict[str, str]) -> None:
        self.module, self.func, self.declined = m, f, declined
        self.readers, self.producers, self.storage = f.readers(), f.producers(), storage(f)
        self.order = {id(s): i for i, s in enumerate(f.body)}
        self.steps: list[Step] = []
        self.prologues: dict[Value, Prologue] = {}
        self.folded: set[int] = set()
        self.summed: dict[int, Value] = {}
        self.renamed: dict[Value, Value] = {}
        self.why: dict[int, str] = {}

    def function(self) -> Function:
        """The function's launches."""
        for s in self.func.body:
            match s:
                case Node():
                    self._node(s)
                case Call() | Loop():
                    self.steps.append(s)
        return Function(self.func.name, self.func.params, self.steps, self.func.returns)

    def _node(self, n: Node) -> None:
        if id(n) in self.folded:
            return
        before = len(self.steps)
        handler = HANDLERS.get(n.op.name)
        if self._view(n) or (handler is not None and handler(self, n)):
            return
        del self.steps[before:]
        self.launch(BODY, n, *n.args, results=n.results, why=self.why.get(id(n), ""))

    def _view(self, n: Node) -> bool:
        """Whether a node only sees its operand in another way."""
        if n.op.name not in VIEWS or not isinstance(n.args[0], Value):
            return False
        x = n.args[0]
        if self.storage.get(n.results[0]) is n.results[0] or not isinstance(x.type.elem, Elem):
            return False
        self.steps.append(View(n, x))
        return True

    # what handlers use

    def launch(
        self,
        kernel: str,
        n: Node,
        *args: Arg,
        results: Sequence[Value] | None = None,
        attrs: Mapping[str, Any] | None = None,
        given: tuple[str, ...] = (),
        why: str = "",
        over: Arg = None,
    ) -> bool:
        """Add a launch; True, as a handler gives."""
        made = tuple(n.results if results is None else results)
        self.steps.append(Launch(kernel, made, args, n, attrs or {}, given, why, over))
        return True

    def same(self, result: Value, x: Value) -> None:
        """Let ``result`` be ``x``."""
        self.steps.append(Same(result, x))

    def decline(self, n: Node, why: str) -> bool:
        """Leave a node to its body, and say why; False, as a handler gives."""
        self.declined.setdefault(n.op.name, f"{self.func.name}.{n.results[0].name}: {why}")
        self.why[id(n)] = why
        return False

    def only_reader(self, v: Value) -> Node | None:
        """The node that alone reads ``v``, once."""
        readers = self.readers.get(v, [])
        if len(readers) != 1 or v in self.func.returns or not isinstance(readers[0], Node):
            return None
        return readers[0]

    def there(self, v: Arg, n: Stmt) -> bool:
        """Whether ``v`` is made before ``n``."""
        made = self.producers.get(v) if isinstance(v, Value) else None
        return made is None or self.order[id(made)] < self.order[id(n)]

    def is_weight(self, a: Arg) -> bool:
        """Whether an operand is bound to a weight."""
        return isinstance(a, Param) and a.weight is not None

    def unmade(self, operands: Sequence[Arg]) -> bool:
        """Whether no kernel writes any of these: then they are read before the kernel in front has ended."""
        return all(a is None or self.is_weight(a) for a in operands)

    def alone(self, a: Arg, operands: Sequence[Arg]) -> bool:
        """Whether no other operand lies where ``a`` does."""
        return isinstance(a, Value) and lies_alone(a, operands, self.storage)

    def rows(self, a: Arg) -> bool:
        """Whether an operand is rows of floats: [rows, features]."""
        return isinstance(a, Value) and a.type.rank == 2 and floats(a)

    def product_reading(self, v: Value) -> Node | None:
        """The product that alone reads ``v``, rows that it multiplies by its weight."""
        n = self.only_reader(v)
        if n is None or n.op.name not in PRODUCTS or n.args[0] is not v or v.type.rank != 2:
            return None
        weight_and_bias = n.args[1:3]
        return n if self.unmade(weight_and_bias) and floats(n.result) else None

    def prologue(self, v: Value, made: Prologue) -> bool:
        """Let what reads ``v`` make it itself; True, as a handler gives."""
        self.prologues[v] = made
        return True

    def read(self, v: Arg) -> Prologue:
        """How a product reads an operand."""
        return self.prologues.get(v, Prologue(v)) if isinstance(v, Value) else Prologue(v)

    def rounded(self, made: Prologue, quant: Quant) -> Prologue:
        """``made``, rounded to ``quant``."""
        return replace(made, quant=quant)


def floats(v: Value) -> bool:
    """Whether a value has entries of bf16, f16 or f32."""
    return isinstance(v.type.elem, Elem) and v.type.elem.name in ("bf16", "f16", "f32")
