"""Patterns: what ``match`` returns is an expression of ops on holes, and this finds it in a function.

Calling an op while a pattern is traced records it. Positional parameters of ``match`` are operand holes;
the annotation says what one takes: ``Value`` a value, ``Param`` a parameter, ``Literal`` a number,
``Value | None`` an optional one; none: anything. A hole in two places is one value. Keyword-only parameters
are attribute holes, ``*xs`` stands for all (other) operands of an op that takes any number. Attributes that
are not written must have the op's default. A commutative op is tried both ways, wherever it stands, until
``where`` has nothing against one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import UnionType
from typing import Any, cast, get_type_hints

from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Node, Param, Value
from irloom.ir.op import Attr, Op, emitting
from irloom.ir.show import show_arg, show_attr
from irloom.ir.signature import Literal

from .draft import Draft

SITE = "site"  # the parameter of `where` and `replace` that is the place of the match, not a hole


class Mismatch(Exception):
    """Why a pattern and a function part here."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Hole:
    """Stands for an operand, with ``attribute`` for an attribute's value, with ``rest`` for all operands."""

    name: str
    accepts: Any = None
    attribute: bool = False
    rest: bool = False

    def takes(self, a: object) -> bool:
        """Whether the hole's annotation allows ``a``."""
        if self.rest and isinstance(a, tuple):
            return all(isinstance(x, Value) for x in cast("tuple[Any, ...]", a))
        return not isinstance(self.accepts, (type, UnionType)) or isinstance(a, self.accepts)


@dataclass(eq=False)
class Applied:
    """An op of a pattern."""

    op: Op
    args: tuple[Any, ...]
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Output:
    """A result of an op of a pattern; index None is its only one."""

    node: Applied
    index: int | None = None

    def __getitem__(self, index: int) -> Output:
        return Output(self.node, index)

    def __iter__(self) -> Iterator[Output]:
        sizes: Any = self.node.attrs.get("sizes")
        if not isinstance(sizes, tuple):
            raise IRError(
                f"{self.node.op.name}: how many results the pattern means is open", hint="index one of them"
            )
        return (Output(self.node, i) for i, _ in enumerate(cast("tuple[Any, ...]", sizes)))


class _Tracer:
    """Records op calls as a pattern."""

    def emit(self, op: Op, args: Sequence[Any], attrs: dict[str, Any]) -> Any:
        missing = 0 if op.variadic else len(op.operands) - len(args)
        node = Applied(op, (*args, *[None] * missing), dict(op.complete(attrs)))
        count = len(op.signature.outs)
        return Output(node) if count == 1 else tuple(Output(node, i) for i in range(count))


@dataclass(frozen=True)
class Pattern:
    """A traced ``match``: its holes and the values it stands for, the one that reaches most of it first."""

    holes: dict[str, Hole]
    outputs: tuple[Output, ...]
    anchor: Output

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """The ops that must be there, one entry for each place of the pattern."""
        seen: dict[Applied, None] = {}
        for o in (self.anchor, *self.outputs):
            _reach(o, seen)
        return tuple(a.op for a in seen)

    @staticmethod
    def trace(match: Callable[..., Any], name: str) -> Pattern:
        """Call ``match`` on holes and record what it does."""
        hints = get_type_hints(match)
        params = inspect.signature(match).parameters.values()
        holes = {p.name: _hole(p, hints.get(p.name)) for p in params}
        with emitting(_Tracer()):
            made = match(
                *(h for h in holes.values() if not h.attribute),
                **{k: h for k, h in holes.items() if h.attribute},
            )
        outputs = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else (made,)
        if not outputs or not all(isinstance(o, Output) for o in outputs):
            raise IRError(f"rule {name}: match returns {made!r}", hint="return op calls on the holes")
        return Pattern(holes, outputs, max(outputs, key=lambda o: len(_reach(o, {}))))


def _hole(p: inspect.Parameter, hint: Any) -> Hole:
    attribute = p.kind is p.KEYWORD_ONLY
    return Hole(p.name, None if attribute or hint is Any else hint, attribute, p.kind is p.VAR_POSITIONAL)


def _reach(x: Any, seen: dict[Applied, None]) -> dict[Applied, None]:
    if isinstance(x, Output) and x.node not in seen:
        seen[x.node] = None
        for a in x.node.args:
            _reach(a, seen)
    return seen


@dataclass
class Match:
    """What holes and ops of a pattern are bound to."""

    holes: dict[str, Any] = field(default_factory=dict[str, Any])
    nodes: dict[Applied, Node] = field(default_factory=dict[Applied, Node])

    @property
    def values(self) -> list[Value]:
        """The values that holes are bound to, each once."""
        bound = [
            v
            for h in self.holes.values()
            for v in (cast("tuple[Any, ...]", h) if isinstance(h, tuple) else (h,))
        ]
        return list(dict.fromkeys(v for v in bound if isinstance(v, Value)))

    def copy(self) -> Match:
        """For trying one of several ways."""
        return Match(dict(self.holes), dict(self.nodes))


@dataclass(frozen=True)
class _Goal:
    """``pattern`` is to be matched by ``actual``; with ``node`` that is a node itself."""

    pattern: Any
    actual: Any = None
    node: Node | None = None
    search: bool = False


def may_match(p: Pattern, root: Node, d: Draft) -> bool:
    """Whether more than ``root`` alone can match: a glance at its operands, for it is asked at every node.

    What is looked at is what ``find`` looks at first, so nothing that comes further than that is lost.
    """
    wants, args = p.anchor.node.args, root.args
    if _begins(wants, args, d):
        return True
    return root.op.commutative and _begins(wants, [args[1], args[0], *args[2:]], d)


def _begins(wants: Sequence[Any], args: Sequence[Arg], d: Draft) -> bool:
    """Whether operands can be those of a pattern, up to the first that an op of the pattern makes."""
    for i, want in enumerate(wants):
        a = args[i] if i < len(args) else None
        if isinstance(want, Output):
            s = d.producer.get(a) if isinstance(a, Value) else None
            return isinstance(s, Node) and s.op is want.node.op
        if isinstance(want, Hole) and want.rest:
            return True
        if not (want.takes(a) if isinstance(want, Hole) else _equal(want, a)):
            return False
    return True


@dataclass
class Furthest:
    """Of all ways that were tried in vain, where the one that came furthest stopped, and what had matched."""

    reason: str = ""
    match: Match = field(default_factory=Match)

    def note(self, reason: str, match: Match) -> None:
        """One more way that ended; of those that came equally far the first counts."""
        if not self.reason or len(match.nodes) > len(self.match.nodes):
            self.reason, self.match = reason, match


def find(p: Pattern, root: Node, d: Draft, failed: Furthest) -> Iterator[Match]:
    """Every way in which ``root`` is the anchor of the pattern; ``failed`` learns where others stopped."""
    rest = [_Goal(o, search=True) for o in p.outputs if o is not p.anchor]
    return _solve([_Goal(p.anchor, node=root), *rest], Match(), d, failed)


def _solve(goals: list[_Goal], m: Match, d: Draft, failed: Furthest) -> Iterator[Match]:
    goals = list(goals)
    try:
        while goals:
            ways = _ways(goals.pop(0), m, d)
            if len(ways) != 1:
                for way in ways:
                    yield from _solve([*way, *goals], m.copy(), d, failed)
                return
            goals = [*ways[0], *goals]
    except Mismatch as e:
        failed.note(e.reason, m)
        return
    yield m


def _ways(g: _Goal, m: Match, d: Draft) -> list[list[_Goal]]:
    """What remains to be matched for a goal, in each way that it may be; ``Mismatch`` if in none."""
    if isinstance(g.pattern, Hole):
        _fill(m, g.pattern, g.actual)
    elif not isinstance(g.pattern, Output):
        if not _equal(g.pattern, g.actual):
            raise Mismatch(f"wants {show_arg(g.pattern)}, not {_show(g.actual)}")
    elif not g.search:
        return _enter(g.pattern.node, g.node or _producer(g.pattern, g.actual, d), m)
    elif g.pattern.node not in m.nodes:
        found = _search(g.pattern, m, d)
        if not found:
            raise Mismatch(f"no {g.pattern.node.op.name} beside it")
        return found
    return [[]]


def _producer(o: Output, actual: Arg, d: Draft) -> Node:
    if not isinstance(actual, Value):
        raise Mismatch(f"wants {o.node.op.name}, not {_show(actual)}")
    s = d.producer.get(actual)
    if not isinstance(s, Node) or s.op is not o.node.op:
        made = s.op.name if isinstance(s, Node) else "a parameter" if isinstance(actual, Param) else "a call"
        raise Mismatch(f"{actual.name} is {made}, not {o.node.op.name}")
    if s.results.index(actual) != (o.index or 0) or (o.index is None and len(s.results) > 1):
        raise Mismatch(f"{actual.name} is another result of {s.op.name}")
    return s


def _search(o: Output, m: Match, d: Draft) -> list[list[_Goal]]:
    """Nodes beside the match that could be ``o``: those that read something already bound."""
    known = [
        m.holes.get(a.name) if isinstance(a, Hole) else _bound(a, m) for a in o.node.args if a is not None
    ]
    source = next((v for v in known if isinstance(v, Value)), None)
    readers = d.readers.get(source, {}) if source is not None else {}
    taken = set(m.nodes.values())
    nodes = [s for s in readers if isinstance(s, Node) and s.op is o.node.op and s not in taken]
    return [[_Goal(o, node=n)] for n in nodes]


def _bound(a: Any, m: Match) -> Any:
    node = m.nodes.get(a.node) if isinstance(a, Output) else None
    return node.results[a.index or 0] if node else None


def _enter(pattern: Applied, node: Node, m: Match) -> list[list[_Goal]]:
    """What must hold for ``node`` to be ``pattern``: its operands, in each order that means the same."""
    if pattern in m.nodes:
        if m.nodes[pattern] is not node:
            raise Mismatch(f"{node.results[0].name} is not {m.nodes[pattern].results[0].name}")
        return [[]]
    if node.op is not pattern.op:
        raise Mismatch(f"{node.results[0].name} is {node.op.name}, not {pattern.op.name}")
    m.nodes[pattern] = node
    args: list[Any] = [*node.args, *[None] * (len(pattern.args) - len(node.args))]
    last = pattern.args[-1] if pattern.args else None
    if isinstance(last, Hole) and last.rest:
        args[len(pattern.args) - 1 :] = [tuple(node.args[len(pattern.args) - 1 :])]
    if len(args) != len(pattern.args):
        raise Mismatch(f"{node.op.name} has {len(args)} operands, not {len(pattern.args)}")
    for k, want in pattern.attrs.items():
        _attribute(m, node, k, want, node.attrs[k])
    straight = [_Goal(p, a) for p, a in zip(pattern.args, args, strict=True)]
    if not node.op.commutative:
        return [straight]
    first, second, *rest = args
    swapped = [_Goal(p, a) for p, a in zip(pattern.args, [second, first, *rest], strict=True)]
    return [straight, swapped]


def _attribute(m: Match, node: Node, key: str, want: Any, value: Any) -> None:
    if isinstance(want, Hole):
        _fill(m, want, value)
    elif isinstance(want, tuple) and isinstance(value, tuple):
        wants, values = cast("tuple[Any, ...]", want), cast("tuple[Any, ...]", value)
        if len(wants) != len(values):
            raise Mismatch(f"{node.results[0].name} has {key}={show_attr(values)}")
        for w, v in zip(wants, values, strict=True):
            _attribute(m, node, key, w, v)
    elif not _equal(want, value):
        raise Mismatch(f"{node.results[0].name} has {key}={_show(value)}, not {_show(want)}")


def _fill(m: Match, hole: Hole, a: Any) -> None:
    if not hole.takes(a):
        raise Mismatch(f"`{hole.name}` {_instead(hole, a)}")
    old = m.holes.setdefault(hole.name, a)
    if old is not a and not (not isinstance(a, Value) and _equal(old, a)):
        raise Mismatch(f"`{hole.name}` would be both {_show(old)} and {_show(a)}")


KINDS = {Value: "a value", Value | None: "a value", Param: "a parameter", Literal: "a number"}


def _instead(hole: Hole, a: Any) -> str:
    """What a hole takes, and what is there."""
    return "is absent" if a is None else f"takes {KINDS.get(hole.accepts, 'another kind')}, not {_show(a)}"


def _equal(want: Any, a: Any) -> bool:
    """Equal as the text shows it, but that 1 is 1.0; a truth value is no number."""
    return not isinstance(a, Value) and isinstance(want, bool) == isinstance(a, bool) and want == a


def _show(a: Any) -> str:
    if isinstance(a, Value):
        return f"the parameter {a.name}" if isinstance(a, Param) else a.name
    return "absent" if a is None else show_attr(cast("Attr", a))
