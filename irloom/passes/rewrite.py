"""Rewrites: what to find, when it is legal, what to put there; and the driver that applies them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, ClassVar

from irloom.ir.errors import IRError, IrloomError
from irloom.ir.graph import Func, Loop, Module, Node, Stmt, Value
from irloom.ir.op import Op

from .core import Changes, NoMatch, has_fuel, spend
from .draft import Draft
from .near_miss import NearMiss, ranked, tells_all
from .pattern import SITE, Furthest, Match, Pattern, find, may_match
from .site import Site

__all__ = ["Rewrite", "RuleError", "Site", "apply"]


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


def _chosen(m: Module, within: str | None) -> list[Func]:
    """The functions that are to be rewritten."""
    if within not in (None, "layers", "main"):
        raise RuleError(f"apply: within is {within!r}", hint="None for every function, 'layers' or 'main'")
    layers = [f for name, f in m.funcs.items() if name != "main"]
    every = list(m.funcs.values())
    return every if within is None or not layers else layers if within == "layers" else [m.main]


class _Rule:
    """A rewrite with its pattern traced, and what its methods ask for."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite, self.name = rewrite, type(rewrite).__name__
        self.pattern = Pattern.trace(rewrite.match, self.name)
        self.wants = {fn: _wanted(fn) for fn in (rewrite.where, rewrite.replace)}

    def call(self, fn: Callable[..., Any], m: Match, site: Site) -> Any:
        """Call ``where`` or ``replace`` with what it names."""
        names = self.wants[fn]
        if names is None:
            return fn(**m.holes)
        return fn(**{name: site if name == SITE else m.holes[name] for name in names})

    def lacks(self, m: Module) -> list[str]:
        """The ops of the pattern that occur nowhere in the program: no place is close to it then."""
        there = {n.op for f in m.funcs.values() for n in f.nodes}
        return [op.name for op in dict.fromkeys(self.pattern.ops) if op not in there]

    def absent(self, m: Module) -> NearMiss:
        """That it lacks ops, which is no place's fault."""
        reason = f"no {' and no '.join(f'`{name}`' for name in self.lacks(m))} in the program"
        return NearMiss("", reason, self.name, (), len(self.pattern.ops))


def _wanted(fn: Callable[..., Any]) -> tuple[str, ...] | None:
    """The parameters of a method of a rule; None where it takes every hole."""
    params = inspect.signature(fn).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in params.values()) else tuple(params)


def apply(m: Module, rules: Sequence[Rewrite], within: str | None = None) -> Changes:
    """Apply ``rules`` to every function until none matches. The first rule that matches at a node wins.

    ``within="layers"`` leaves ``main`` alone where it calls others, and ``within="main"`` those that it
    calls. ``apply_across`` also matches what two layers share.
    """
    traced, changes = [_Rule(r) for r in rules], Changes()
    absent = {r for r in traced if r.lacks(m)} if tells_all() else set[_Rule]()
    for f in _chosen(m, within):
        changes += _Driver(m, f, traced, absent).run()
    changes.near_misses += [r.absent(m) for r in traced if r in absent and r.lacks(m)]
    return changes


class _Driver:
    """Applies rules to one function. ``rules`` are by the op of the node that a match is looked for from.

    Of ``silent`` ones no miss is told.
    """

    def __init__(self, m: Module, f: Func, rules: Iterable[_Rule], silent: Set[_Rule]) -> None:
        self.module, self.draft, self.silent = m, Draft(f), silent
        self.rules: dict[Op, list[_Rule]] = {}
        for r in rules:
            self.rules.setdefault(r.pattern.anchor.node.op, []).append(r)
        self.places: list[str] = []
        self.near: dict[NearMiss, None] = {}
        self.limit = 20 * len(f.body) + 1000
        self.tells_all = tells_all()

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
            if isinstance(s, Node) and s.op in self.rules and s in self.draft.slot and self._node(s):
                todo = list(slot)

    def _node(self, root: Node) -> bool:
        """Rewrite at ``root`` by the first rule that matches there."""
        for rule in self.rules[root.op]:
            if not self.tells_all and not may_match(rule.pattern, root, self.draft):
                continue
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
        """Rewrite at ``root`` in the first way in which the rule matches and does not decline."""
        place, failed, declined = self._place(root), Furthest(), Furthest()
        for found in find(rule.pattern, root, self.draft, failed):
            made = list[Stmt]()
            site = Site(self.module, self.draft, root, made)
            try:
                if self._rewrite(rule, found, site, made):
                    self._count(f"{place}: {rule.name}", rule)
                    return True
                return False
            except (NoMatch, IRError) as e:  # an IRError: the ops of the replacement do not fit here
                self._undo(site, made)
                declined.note(e.message if isinstance(e, IRError) else str(e), found)
        if declined.reason:
            self._miss(rule, root, declined, declined=True)
        elif len(failed.match.nodes) > 1 or self.tells_all:
            self._miss(rule, root, failed)
        return False

    def _place(self, root: Node) -> str:
        return f"{self.draft.func.name}.{root.results[0].name}"

    def _miss(self, rule: _Rule, root: Node, why: Furthest, declined: bool = False) -> None:
        if not why.reason or rule in self.silent or (rule.rewrite.quiet and not self.tells_all):
            return
        matched, of = tuple(a.op.name for a in why.match.nodes), len(rule.pattern.ops)
        near = NearMiss(self._place(root), why.reason, rule.name, matched, of, root.loc, declined)
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
        if not has_fuel():
            return False
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
                self.draft.inherit(new, old.name)
                fresh.discard(new)


def _outputs(p: Pattern, m: Match) -> list[Value]:
    """The values that the pattern stands for."""
    results = [(m.nodes[o.node].results, o.index) for o in p.outputs]
    return [v for made, i in results for v in (made if i is None else [made[i]])]
