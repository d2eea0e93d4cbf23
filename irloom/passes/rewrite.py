"""Rewrites: what to find, when it is legal, what to put there; and the driver that applies them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from irloom.ir.elem import Quant
from irloom.ir.errors import IRError, IrloomError
from irloom.ir.graph import Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.types import Type
from irloom.ir.weight_expr import WeightExpr

from .core import Changes, NoMatch, spend
from .draft import Draft
from .near_miss import NearMiss, ranked, tells_all
from .pattern import SITE, Match, Mismatch, Pattern, find


class Rewrite:
    """Three methods in reading order; no state is kept on ``self`` between them (fields are settings).

    ``match`` returns an op expression on its parameters, or a tuple where several values go at once.
    ``where`` raises ``NoMatch(reason)`` to decline. ``replace`` calls ops, or returns a hole, and gives as
    many values. ``where`` and ``replace`` take the holes that they name, and ``site`` if they name that.

    A value inside of a match that has readers outside of it stops the rewrite; with ``shared`` it stays.
    With ``quiet`` a decline is no near miss: it is how the rule works, not news.
    """

    shared: ClassVar[bool] = False
    quiet: ClassVar[bool] = False

    def match(self, *holes: Any, **attributes: Any) -> Any:
        """The pattern."""
        raise NotImplementedError(type(self).__name__)

    def where(self, *args: Any, **holes: Any) -> None:
        """Raise ``NoMatch`` to decline."""

    def replace(self, *args: Any, **holes: Any) -> Any:
        """What takes the place of what ``match`` returns."""
        raise NotImplementedError(type(self).__name__)


class RuleError(IrloomError):
    """A rule that contradicts itself or another: the author's mistake, not a program that does not match."""


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


@dataclass(frozen=True)
class _Rule:
    """A rewrite with its pattern traced."""

    rewrite: Rewrite
    pattern: Pattern

    @property
    def name(self) -> str:
        return type(self.rewrite).__name__

    def call(self, fn: Callable[..., Any], m: Match, site: Site) -> Any:
        """Call ``where`` or ``replace`` with what it names."""
        given = {**m.holes, SITE: site}
        params = inspect.signature(fn).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in params):
            return fn(**m.holes)
        return fn(**{p.name: given[p.name] for p in params})


def apply(m: Module, rules: Sequence[Rewrite]) -> Changes:
    """Apply ``rules`` to every function until none matches. The first rule that matches at a node wins."""
    traced = [_Rule(r, Pattern.trace(r.match, type(r).__name__)) for r in rules]
    changes = Changes()
    for f in m.funcs.values():
        changes += _Driver(m, f, traced).run()
    return changes


class _Driver:
    def __init__(self, m: Module, f: Func, rules: Iterable[_Rule]) -> None:
        self.module, self.draft = m, Draft(f)
        self.rules: dict[str, list[_Rule]] = {}
        for r in rules:
            self.rules.setdefault(r.pattern.anchor.node.op.name, []).append(r)
        self.places: list[str] = []
        self.near: dict[NearMiss, None] = {}
        self.limit = 20 * len(f.body) + 1000

    def run(self) -> Changes:
        done = -1
        while done != len(self.places):
            done = len(self.places)
            self.near.clear()
            for i in range(len(self.draft.slots)):
                self._slot(i)
        self.draft.commit()
        return Changes(self.places, ranked(self.near))

    def _slot(self, i: int) -> None:
        slot = self.draft.slots[i]
        todo = list(slot)
        while todo:
            s = todo.pop(0)
            if s in self.draft.slot and isinstance(s, Node) and self._node(s):
                todo = list(slot)

    def _node(self, root: Node) -> bool:
        for rule in self.rules.get(root.op.name, []):
            try:
                if self._try(rule, root):
                    return True
            except IrloomError as e:
                raise e.at(f"  --> rule {rule.name} at {self._place(root)}") from None
            except Exception as e:
                e.add_note(f"  --> rule {rule.name} at {self._place(root)}")
                raise
        return False

    def _try(self, rule: _Rule, root: Node) -> bool:
        """Rewrite at ``root`` if the rule matches and does not decline."""
        place, site, taken = self._place(root), Site(self.module, self.draft, root), list[Stmt]()
        try:
            found = find(rule.pattern, root, self.draft)
        except Mismatch as e:
            if e.depth > 1 or tells_all():
                self._miss(rule, root, e.reason, e.match)
            return False
        try:
            if self._rewrite(rule, found, site, taken):
                self._count(f"{place}: {rule.name}", rule)
                return True
        except (NoMatch, IRError) as e:  # an IRError: the ops of the replacement do not fit here
            self._undo(site, taken)
            self._miss(rule, root, e.message if isinstance(e, IRError) else str(e), found)
        return False

    def _place(self, root: Node) -> str:
        return f"{self.draft.func.name}.{root.results[0].name}"

    def _miss(self, rule: _Rule, root: Node, reason: str, found: Match) -> None:
        if reason and (tells_all() or not rule.rewrite.quiet):
            matched = tuple(a.op.name for a in found.nodes)
            near = NearMiss(self._place(root), reason, rule.name, matched, len(rule.pattern.ops), root.loc)
            self.near[near] = None

    def _count(self, place: str, rule: _Rule) -> None:
        self.places.append(place)
        if len(self.places) > self.limit:
            raise RuleError(
                f"{rule.name} and other rules undo each other without end",
                hint=f"the last: {place}",
            )

    def _undo(self, site: Site, made: list[Stmt]) -> None:
        names = [*(r.name for s in made for r in s.results), *(p.name for p in site.new_params)]
        self.draft.taken.difference_update(names)

    def _rewrite(self, rule: _Rule, found: Match, site: Site, made: list[Stmt]) -> bool:
        old = _outputs(rule.pattern, found)
        matched = list(dict.fromkeys(found.nodes.values()))
        if not rule.rewrite.shared:
            self._private(old, matched)
        rule.call(rule.rewrite.where, found, site)
        at = self._position(old, matched, found)
        with self.draft.builder(made, site.root.loc):
            new = rule.call(rule.rewrite.replace, found, site)
        values: list[Any] = [*new] if isinstance(new, tuple) else [new]
        self._fits(rule, old, values, made)
        if not spend():
            self._undo(site, made)
            return False
        self._commit(list(zip(old, values, strict=True)), matched, made, at, site)
        self.draft.drop(found.values)
        return True

    def _private(self, old: list[Value], matched: list[Node]) -> None:
        """Decline when a value that would be dropped has a reader outside of the match."""
        inside = set[Stmt](matched)
        for v in (r for n in matched for r in n.results if r not in old):
            if other := next((s for s in self.draft.readers.get(v, {}) if s not in inside), None):
                raise NoMatch(f"{v.name} has another reader: {other.results[0].name}")
            if v in self.draft.returned:
                raise NoMatch(f"{v.name} has another reader: return")

    def _position(self, old: list[Value], matched: list[Node], found: Match) -> Stmt:
        """What the new nodes go before: as late as the readers of the results allow, after every operand."""
        inside = set[Stmt](matched)
        readers = [s for v in old for s in self.draft.readers.get(v, {}) if s not in inside]
        last = max((self.draft.producer[v] for v in old), key=self.draft.place)
        at = min([last, *readers], key=self.draft.place)
        for v in found.values:
            if not self.draft.defined_before(v, at):
                raise NoMatch(f"{at.results[0].name} reads the result before {v.name} is there")
        return at

    def _fits(self, rule: _Rule, old: list[Value], new: list[Any], made: list[Stmt]) -> None:
        fresh = {r for s in made for r in s.results}
        if len(old) != len(new) or not all(isinstance(v, Value) for v in new):
            raise RuleError(f"rule {rule.name}: match stands for {len(old)} values, replace returns {new}")
        for a, b in zip(old, new, strict=True):
            if a.type != b.type:
                raise NoMatch(f"{a.name} is {a.type}, the replacement {b.type}")
            for s in self.draft.readers.get(a, {}):
                if isinstance(s, Loop) and a in (*s.inits, *s.yields) and b not in fresh:
                    raise NoMatch(f"the loop over {s.var} carries {a.name} on")

    def _commit(
        self, swap: list[tuple[Value, Value]], matched: list[Node], made: list[Stmt], at: Stmt, site: Site
    ) -> None:
        fresh = {r for s in made for r in s.results}
        site.settle()
        self.draft.insert(made, at)
        for old, new in swap:
            self.draft.redirect(old, new)
        self.draft.sweep(matched)
        for old, new in swap:
            if new in fresh and old not in self.draft.producer:
                self.draft.rename(new, old.name)
                fresh.discard(new)


def _outputs(p: Pattern, m: Match) -> list[Value]:
    """The values that the pattern stands for."""
    results = [(m.nodes[o.node].results, o.index) for o in p.outputs]
    return [v for made, i in results for v in (made if i is None else [made[i]])]
