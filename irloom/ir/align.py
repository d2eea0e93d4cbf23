"""Which statement of one function is which of another: what a structural diff stands on.

Names say little once nodes are numbered anew, and what a node computes says nothing once an operand far above
it has changed. So three looks are combined, surest first: the same op on the same operands, from the
parameters down; the producers of what is known to be the same, from the returns up; then names and places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .graph import Call, Func, Loop, Node, Param, Stmt, Value
from .show import show_attr
from .weight_expr import show_weight


@dataclass
class Alignment:
    """``stmts`` and ``params`` map what is in the old function to what stands for it in the new one.

    ``values`` does so for every value. Two paired statements may differ in op: one took the other's place.
    """

    stmts: dict[Stmt, Stmt] = field(default_factory=dict[Stmt, Stmt])
    params: dict[Param, Param] = field(default_factory=dict[Param, Param])
    values: dict[Value, Value] = field(default_factory=dict[Value, Value])


def align(old: Func, new: Func, renamed: Mapping[str, str] | None = None) -> Alignment:
    """Pair the parameters and statements of two functions; ``renamed`` gives functions their new names."""
    return _Aligner(old, new, renamed or {}).run()


def statements(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """The statements of a body in order, a loop before those inside of it."""
    for s in body:
        yield s
        if isinstance(s, Loop):
            yield from statements(s.body)


def op_of(s: Stmt) -> str:
    """What a statement applies: an op, a function, or ``for``."""
    return s.op.name if isinstance(s, Node) else s.callee if isinstance(s, Call) else "for"


def settings(s: Stmt) -> tuple[str, ...]:
    """What a statement says beside its op and the values it reads, as text."""
    match s:
        case Node():
            literals = (show_attr(a) for a in s.args if not isinstance(a, Value))
            return (*literals, *(f"{k}={show_attr(v)}" for k, v in s.attrs.items()))
        case Call():
            return (f"[{s.index}]", *(f"[{x.index}]" for x in (*s.slots, *s.reads)))
        case Loop():
            return (str(s.indices),)


def reads(s: Stmt) -> list[Value]:
    """What a statement reads, in order; of a loop, what it carries in and what it carries on."""
    return [*s.inits, *s.yields] if isinstance(s, Loop) else s.values


def makes(s: Stmt) -> list[Value]:
    """What a statement defines; of a loop, the carried values too."""
    return [*s.params, *s.results] if isinstance(s, Loop) else s.results


class _Aligner:
    def __init__(self, old: Func, new: Func, renamed: Mapping[str, str]) -> None:
        self.old, self.new, self.renamed = old, new, renamed
        self.olds, self.news = list(statements(old.body)), list(statements(new.body))
        self.makers = {v: s for s in (*self.olds, *self.news) for v in makes(s)}
        self.out = Alignment()
        self.back: dict[Value, Value] = {}
        self.taken = set[Stmt]()  # statements of the new function that stand for one of the old
        self.said = {s: settings(s) for s in (*self.olds, *self.news)}

    def run(self) -> Alignment:
        self._params()
        self._settle()
        for look in (
            lambda: self._only(lambda s: (self._op(s), _name(s), loc_of(s))),
            lambda: self._only(lambda s: (self._op(s), loc_of(s)) if loc_of(s) else None),
            self._nearest,
            lambda: self._only(lambda s: (self._op(s), _name(s))),
            lambda: self._only(_name),
        ):
            look()
            self._settle()
        self._namesakes()
        return self.out

    def _namesakes(self) -> None:
        """Values that another statement makes now, under the same name: the second result of a fused op."""
        free = {(v.name, v.type): v for b in self.news for v in makes(b) if v not in self.back}
        for v in (v for a in self.olds for v in makes(a) if v not in self.out.values):
            if w := free.pop((v.name, v.type), None):
                self._same_value(v, w)

    def _settle(self) -> None:
        """Follow what is paired down and up, until nothing new comes of it."""
        before = -1
        while before != len(self.out.stmts):
            before = len(self.out.stmts)
            self._down()
            self._up()

    def _params(self) -> None:
        """By what a weight is bound to, then by name; data by name, then in order."""
        keys: list[Callable[[Param], Hashable]] = [
            lambda p: (p.name, p.weight and show_weight(p.weight)),
            lambda p: p.weight and show_weight(p.weight),
            lambda p: (p.name, p.weight is None),
        ]
        for key in keys:
            self._pair_params(key)
        left = [p for p in self.old.data if p not in self.out.params]
        free = [p for p in self.new.data if p not in self.back]
        for a, b in zip(left, free, strict=False):
            self._same_param(a, b)

    def _pair_params(self, key: Callable[[Param], Hashable]) -> None:
        found = {key(p): p for p in reversed(self.new.params) if p not in self.back}
        for a in self.old.params:
            b = found.get(key(a)) if key(a) is not None and a not in self.out.params else None
            if b is not None and b not in self.back:
                self._same_param(a, b)

    def _same_param(self, a: Param, b: Param) -> None:
        self.out.params[a] = b
        self._same_value(a, b)

    def _same_value(self, a: Value, b: Value) -> None:
        self.out.values.setdefault(a, b)
        self.back.setdefault(b, a)

    def _same(self, a: Stmt, b: Stmt) -> bool:
        """Pair two statements, unless one has a pair already."""
        if a in self.out.stmts or b in self.taken:
            return False
        self.out.stmts[a] = b
        self.taken.add(b)
        self._same_values(a, b)
        return True

    def _same_values(self, a: Stmt, b: Stmt) -> None:
        for x, y in _same_places(a, b):
            self._same_value(x, y)

    def _op(self, s: Stmt) -> str:
        """What a statement applies, functions in the names of the new module."""
        return self.renamed.get(s.callee, s.callee) if isinstance(s, Call) else op_of(s)

    def _alike(self, a: Stmt, b: Stmt) -> bool:
        return self._op(a) == op_of(b) and self.said[a] == self.said[b] and len(reads(a)) == len(reads(b))

    def _down(self) -> None:
        """The same op with the same settings on the same operands: of several that with the same name."""
        free: dict[Hashable, list[Stmt]] = defaultdict(list)
        for b in self.news:
            free[op_of(b), self.said[b], tuple(_entering(b))].append(b)
        for a in self.olds:
            if a in self.out.stmts:
                continue
            given = [self.out.values.get(v) for v in _entering(a)]
            alike = free[self._op(a), self.said[a], tuple(given)] if None not in given else []
            same = [b for b in alike if b not in self.taken]
            if same:
                names = (b for b in same if _name(b) == _name(a))
                self._same(a, next(names, same[0]))
            elif alike:  # computed twice before, once now
                self._same_values(a, alike[0])

    def _up(self) -> None:
        """From what is returned, and from every pair: producers of paired operands that do the same."""
        todo = list(zip(self.old.returns, self.new.returns, strict=False))
        for a, b in self.out.stmts.items():
            if op_of(b) == self._op(a):
                todo += zip(reads(a), reads(b), strict=False)
        while todo:
            x, y = todo.pop()
            a, b = self.makers.get(x), self.makers.get(y)
            if a and b and self._alike(a, b) and makes(a).index(x) == makes(b).index(y) and self._same(a, b):
                todo += zip(reads(a), reads(b), strict=True)

    def _only(self, key: Callable[[Stmt], Hashable]) -> None:
        """Pair what is left where ``key`` tells one statement from all others, on both sides."""
        free: dict[Hashable, list[Stmt]] = defaultdict(list)
        left: dict[Hashable, list[Stmt]] = defaultdict(list)
        for s in self.olds:
            if s not in self.out.stmts:
                left[key(s)].append(s)
        for s in self.news:
            if s not in self.taken:
                free[key(s)].append(s)
        for k, (a, *more) in left.items():
            if k is not None and not more and len(free[k]) == 1:
                self._same(a, free[k][0])

    def _nearest(self) -> None:
        """What paired statements read at one place: if both are left, one took the place of the other."""
        for a, b in list(self.out.stmts.items()):
            if self._op(a) == op_of(b) and len(reads(a)) == len(reads(b)):
                for x, y in zip(reads(a), reads(b), strict=True):
                    one, other = self.makers.get(x), self.makers.get(y)
                    if one and other and makes(one).index(x) == makes(other).index(y):
                        self._same(one, other)


def _same_places(a: Stmt, b: Stmt) -> Iterator[tuple[Value, Value]]:
    """What two statements make, in pairs: in order, and of loops that carry unequally much by name."""
    if isinstance(a, Loop) and isinstance(b, Loop) and len(a.params) != len(b.params):
        for xs, ys in ((a.params, b.params), (a.results, b.results)):
            named = {y.name: y for y in ys}
            yield from ((x, named[x.name]) for x in xs if x.name in named)
    else:
        yield from zip(makes(a), makes(b), strict=False)


def loc_of(s: Stmt) -> str:
    """Where a statement comes from; a loop comes from nowhere."""
    return "" if isinstance(s, Loop) else s.loc


def _name(s: Stmt) -> str:
    """What a statement makes, and for which layer: calls in a loop all make ``x``."""
    at = f"[{s.index}]" if isinstance(s, Call) else ""
    return f"{s.results[0].name}{at}" if s.results else at


def _entering(s: Stmt) -> list[Value]:
    return s.inits if isinstance(s, Loop) else s.values
