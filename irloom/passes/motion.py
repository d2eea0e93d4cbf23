"""Reshapes and permutes meet: chains become the shortest that does the same, and pass what parts them.

Elementwise ops do not care where entries lie. A reshape or permute that stands behind some moves in front of
them where it then cancels with another, or becomes part of how a weight is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from irloom.ir.elem import Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Func, Loop, Node, Param, Stmt, Value
from irloom.ir.op import Op
from irloom.ir.types import Type

from .core import Changes, spend
from .draft import Draft
from .layers import split_loc
from .views import Step, View, cost, step_of

DEEPEST = 16
"""Elementwise nodes that one move goes past, one in front of the other."""


def move(f: Func) -> Changes:
    """Shorten chains of reshapes and permutes; let them pass elementwise nodes where they cancel."""
    motion = _Motion(Draft(f))
    for n in f.nodes:
        if n in motion.draft.slot and step_of(n):
            motion.shorten(n)
    for n in reversed(f.nodes):
        if n in motion.draft.slot and step_of(n):
            motion.lift(n)
    motion.draft.commit()
    return Changes(motion.places)


@dataclass
class _Chain:
    """Reshapes and permutes, the first one first, of ``base``. ``own`` of the last have no other reader."""

    base: Value
    nodes: list[Node]
    own: int

    @property
    def steps(self) -> list[Step]:
        return [step for n in self.nodes if (step := step_of(n))]


@dataclass
class _Plan:
    """How a view reaches a value: by ``steps`` on ``leaf``, or by way of the operands of a ``node``.

    ``cost`` is what that adds less what it makes superfluous: permutes, then all.
    """

    leaf: Arg
    steps: list[Step]
    cost: tuple[int, int]
    node: Node | None = None
    operands: list[_Plan] | None = None


class _Motion:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.places: list[str] = []
        self.made: set[Value] = set()
        self.like: dict[Value, Value] = {}  # what takes the place, and the name, of what

    def shorten(self, n: Node) -> None:
        """Put the shortest chain that does the same in place of the one that ends in ``n``."""
        whole = self._chain(n.result)
        for k in range(len(whole.nodes)):
            nodes = whole.nodes[k:]
            old = _Chain(nodes[0].values[0], nodes, min(whole.own, len(nodes)))
            view = View.of(old.base.type.dims).over(old.steps)
            steps = view.steps() if view else old.steps
            if cost(steps) < cost(old.steps) and len(steps) <= max(old.own, 1):
                break
        else:
            return
        if not _same(old.base.type, steps, n.result.type) or self._carried(n.result, steps) or not spend():
            return
        self._put(n, self._made(old.base, steps, n))
        self.places.append(f"{self.draft.func.name}.{n.result.name}: {_said(old.steps)} as {_said(steps)}")

    def lift(self, n: Node) -> None:
        """Let the chain that ends in ``n`` pass the elementwise nodes before it."""
        chain = self._chain(n.result)
        chain = _Chain(chain.nodes[-chain.own].values[0], chain.nodes[-chain.own :], chain.own)
        made = self.draft.producer.get(chain.base)
        view = View.of(chain.base.type.dims).over(chain.steps)
        if view is None or not _elementwise(made) or not self._only(chain.base, chain.nodes[0]):
            return
        assert isinstance(made, Node)
        if _layer(made) != _layer(n):  # layers that are alike stay alike
            return
        plan = self._past(made, view, DEEPEST)
        if plan is None or _sum(plan.cost, _less(cost(chain.steps))) >= (0, 0) or not spend():
            return
        new = self._built(plan, n)
        if new.type != n.result.type:
            raise AssertionError(f"{n.result} has become {new}")
        self._put(n, new)
        self.places.append(
            f"{self.draft.func.name}.{n.result.name}: {_said(chain.steps)} in front of {made.op.name}"
        )

    # what a plan costs

    def _past(self, n: Node, view: View, depth: int) -> _Plan | None:
        """``view`` of what ``n`` makes, by views of its operands; None where an operand has no such view."""
        operands: list[_Plan] = []
        for a in n.args:
            plan = self._operand(a, view, n, depth)
            if plan is None:
                return None
            operands.append(plan)
        total = (0, 0)
        for plan in operands:
            total = _sum(total, plan.cost)
        return _Plan(n.result, [], total, n, operands)

    def _operand(self, a: Arg, view: View, reader: Node, depth: int) -> _Plan | None:
        if not isinstance(a, Value) or not a.type.rank:
            return _Plan(a, [], (0, 0))
        own = view.of_operand(a.type.dims)
        if own is None or any(a.type.axes) or a.type.partial:
            return None
        made = self.draft.producer.get(a)
        only = self._only(a, reader)
        chain = self._chain(a)
        total = View.of(chain.base.type.dims).over([*chain.steps, *own.steps()])
        if total is None:
            return None
        steps = total.steps()
        gone = chain.steps[len(chain.nodes) - chain.own :] if only and chain.nodes else []
        free = isinstance(chain.base, Param) and chain.base.weight is not None
        permutes, all_ = cost(gone)
        saved = permutes, all_ if not steps else 0  # two reshapes that become one save nothing
        best = _Plan(chain.base, steps, _sum((0, 0) if free else cost(steps), _less(saved)))
        if depth and only and _elementwise(made) and not chain.nodes:
            assert isinstance(made, Node)
            past = self._past(made, own, depth - 1)
            if past is not None and past.cost < best.cost:
                return past
        return best

    # the function

    def _chain(self, v: Value) -> _Chain:
        """The reshapes and permutes that make ``v``."""
        nodes: list[Node] = []
        own, private = 0, True
        while isinstance(n := self.draft.producer.get(v), Node) and step_of(n):
            private = private and (not nodes or self._only(v, nodes[0]))
            own += private
            nodes.insert(0, n)
            v = n.values[0]
        return _Chain(v, nodes, own)

    def _only(self, v: Value, reader: Stmt) -> bool:
        """Whether ``reader`` alone reads ``v``."""
        return list(self.draft.readers.get(v, {})) == [reader] and v not in self.draft.returned

    def _carried(self, v: Value, steps: list[Step]) -> bool:
        """Whether a loop carries ``v`` on: then it cannot become a value that is there already."""
        return not steps and any(isinstance(s, Loop) for s in self.draft.readers.get(v, {}))

    def _built(self, plan: _Plan, at: Node) -> Value:
        if plan.node is None:
            return self._made(plan.leaf, plan.steps, at) if isinstance(plan.leaf, Value) else _fail(plan)
        args = [self._built(p, at) if isinstance(p.leaf, Value) else p.leaf for p in plan.operands or []]
        return self._emit(plan.node.op, args, plan.node, at)

    def _made(self, v: Value, steps: list[Step], at: Node) -> Value:
        made: list[Stmt] = []
        with self.draft.builder(made, at.loc):
            for op, dims in steps:
                v = op(v, dims=dims)
        self.draft.insert(made, at)
        self.made.update(r for s in made for r in s.results)
        return v

    def _emit(self, op: Op, args: list[Arg], like: Node, at: Node) -> Value:
        made: list[Stmt] = []
        with self.draft.builder(made, like.loc) as b:
            b.name = like.result.name
            v: Value = op(*args, **like.attrs)
        self.draft.insert(made, at)
        self.made.add(v)
        self.like[v] = like.result
        return v

    def _put(self, n: Node, new: Value) -> None:
        """Let readers of ``n`` read ``new``, which takes its name if it is new; what is read no more goes."""
        old = n.result
        self.draft.redirect(old, new)
        above = [n]
        while above:
            s = above.pop()
            if s in self.draft.slot and not any(self.draft.is_read(r) for r in s.results):
                sources = [self.draft.producer.get(v) for v in s.values]
                self.draft.remove(s)
                above += [x for x in sources if isinstance(x, Node)]
        for v, before in {**self.like, **({new: old} if new in self.made else {})}.items():
            if before not in self.draft.producer:
                self.draft.rename(v, before.name)
        self.like.clear()


def _fail(plan: _Plan) -> Value:
    raise AssertionError(f"{plan.leaf} is no value")


def _elementwise(s: Stmt | None) -> bool:
    """Whether a statement computes each entry of its one result from one entry of each operand."""
    return (
        isinstance(s, Node)
        and len(s.results) == 1
        and isinstance(s.result.type.elem, Elem)
        and bool(s.args)
        and not s.op.variadic
        and not any(s.result.type.axes)
        and not s.result.type.partial
        and all(t.axes is not None and all(a.broadcast for a in t.axes) for t in s.op.signature.ins)
    )


def _layer(n: Node) -> str:
    """The module path of a node as far as its first number."""
    found = re.match(r"(\S*?\.\d+)\b", split_loc(n.loc)[0])
    return found[1] if found else ""


def _same(t: Type, steps: list[Step], wanted: Type) -> bool:
    """Whether steps make the wanted type, mesh axes too."""
    try:
        for op, dims in steps:
            (t,) = op.infer([t], {"dims": dims})
    except IRError:
        return False
    return t == wanted


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _less(a: tuple[int, int]) -> tuple[int, int]:
    return -a[0], -a[1]


def _said(steps: list[Step]) -> str:
    return ", ".join(op.name for op, _ in steps) or "nothing"
