"""What differs between two programs, by structure and not by line: `diff(a, b)`.

Passes, numbering and names aside, two programs are the same when their nodes are. A node is *added* or
*removed*; *replaced* where another op took its place; *changed* where its attributes or operands did;
*retyped* where only its type did; *moved* where it stands in another function or in another order. The like
goes for parameters, and what a function returns may differ. Whatever is new says which pass made it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

from .align import Alignment, align, loc_of, op_of, reads, settings, statements
from .copy import same_const
from .graph import Func, Module, Node, Param, Stmt, Value
from .show import show_param, show_stmt
from .weight_expr import show_weight

Kind = Literal["added", "removed", "replaced", "changed", "retyped", "moved"]
KINDS: tuple[Kind, ...] = ("added", "removed", "replaced", "changed", "retyped", "moved")


@dataclass(frozen=True)
class Item:
    """A parameter or a statement of one of the two programs, and the function that it stands in."""

    func: str
    at: Param | Stmt

    @property
    def name(self) -> str:
        """Of the parameter, or of the first value that the statement makes."""
        if isinstance(self.at, Param):
            return self.at.name
        return self.at.results[0].name if self.at.results else op_of(self.at)

    @property
    def made_by(self) -> str:
        """The pass that made the node; empty where that was the frontend, or it is no node."""
        return self.at.made_by if isinstance(self.at, Node) else ""

    def __str__(self) -> str:
        """Its line in the text."""
        return show_param(self.at) if isinstance(self.at, Param) else show_stmt(self.at)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        op = {} if isinstance(self.at, Param) else {"op": op_of(self.at)}
        return {"function": self.func, "name": self.name, **op, "text": str(self)}


@dataclass(frozen=True)
class Change:
    """One difference: what it was, what it is; None for what was not, or is not.

    ``removed_by`` is the pass that took it out, where that is known (see ``passes.blame``).
    """

    kind: Kind
    old: Item | None
    new: Item | None
    removed_by: str = ""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        sides = {"old": self.old and self.old.to_json(), "new": self.new and self.new.to_json()}
        return {
            "kind": self.kind,
            **sides,
            "made_by": self.new.made_by if self.new else "",
            "removed_by": self.removed_by,
        }


@dataclass
class FuncDiff:
    """What differs in a function; ``old`` or ``new`` is None where there is none. ``pairs`` is what stayed.

    ``changes`` are in the order of the new function, with what is removed where it stood. ``returns`` is what
    it returned and what it returns, where that is not the same.
    """

    old: Func | None
    new: Func | None
    pairs: Alignment
    changes: list[Change] = field(default_factory=list[Change])
    returns: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Its name now, or the one that it had."""
        found = self.new or self.old
        assert found is not None
        return found.name

    @property
    def renamed(self) -> bool:
        """Whether it has another name now."""
        return self.old is not None and self.new is not None and self.old.name != self.new.name

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        there = self.old is not None and self.new is not None
        return there and not (self.changes or self.renamed or self.returns)

    def of(self, kind: Kind) -> list[Change]:
        """The changes of one kind."""
        return [c for c in self.changes if c.kind == kind]


@dataclass
class Diff:
    """What differs between two programs: in the header, and in each function, in the new program's order.

    The header's rows are a name, what it was and what it is, each empty where it is not declared.
    """

    header: list[tuple[str, str, str]]
    funcs: list[FuncDiff]

    @property
    def same(self) -> bool:
        """Whether nothing differs, names and order of passes aside."""
        return not self.header and all(f.same for f in self.funcs)

    def func(self, name: str) -> FuncDiff:
        """What differs in the function called ``name``, now or before; ``KeyError`` if there is none."""
        for f in self.funcs:
            if name in (f.name, f.old.name if f.old else None):
                return f
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        header = [{"name": name, "old": old, "new": new} for name, old, new in self.header]
        return {"same": self.same, "header": header, "functions": [_json(f) for f in self.funcs]}


def _json(f: FuncDiff) -> dict[str, Any]:
    counts = {kind: len(f.of(kind)) for kind in KINDS}
    names = {"old": f.old.name if f.old else None, "new": f.new.name if f.new else None}
    returns = f.returns and dict(zip(("old", "new"), f.returns, strict=True))
    return {**names, **counts, "returns": returns, "changes": [c.to_json() for c in f.changes]}


def diff(a: Module, b: Module) -> Diff:
    """How ``b`` differs from ``a``.

    >>> from .parse import parse
    >>> head = "def main(g: f32[T, 8], u: f32[T, 8]):\\n"
    >>> one = parse(head + "    s = silu(g)\\n    y = mul(s, u)\\n    return y")
    >>> other = parse(head + "    y = silu_mul(g, u)\\n    return y")
    >>> [(c.kind, str(c.new or c.old)) for c in diff(one, other).func("main").changes]
    [('removed', 's: f32[T, 8] = silu(g)'), ('replaced', 'y: f32[T, 8] = silu_mul(g, u)')]
    """
    partners = _partners(a, b)
    renamed = {old.name: new.name for old, new in partners}
    funcs = [_compare(old, new, renamed) for old, new in partners]
    funcs += [_whole(None, f) for f in b.funcs.values() if f.name not in renamed.values()]
    funcs += [_whole(f, None) for f in a.funcs.values() if f.name not in renamed]
    _move(funcs, _Homes.of(a, b))
    place = {name: i for i, name in enumerate(b.funcs)}
    return Diff(_header(a, b), sorted(funcs, key=lambda f: place.get(f.name, len(place))))


def _partners(a: Module, b: Module) -> list[tuple[Func, Func]]:
    """Functions of one name, then those that are the same but for their name."""
    pairs = [(f, b.funcs[name]) for name, f in a.funcs.items() if name in b.funcs]
    left = [f for name, f in a.funcs.items() if name not in b.funcs]
    free = [f for name, f in b.funcs.items() if name not in a.funcs]
    for f in left:
        for g in free:
            found = _compare(f, g, {})
            if not found.changes and not found.returns:
                pairs.append((f, g))
                free.remove(g)
                break
    return pairs


def _header(a: Module, b: Module) -> list[tuple[str, str, str]]:
    """The declarations that differ."""
    old, new = _declared(a), _declared(b)
    rows = [(k, old.get(k, ""), new.get(k, "")) for k in dict.fromkeys((*old, *new))]
    other = [k for k in a.consts if k in b.consts and not same_const(a.consts[k], b.consts[k])]
    return [row for row in rows if row[1] != row[2] or row[0] in other]


def _declared(m: Module) -> dict[str, str]:
    """What the header declares, as text: dims, mesh, elements, buffers, and the types of constants."""
    return {
        **{k: f"dim[{low}, {high}]" for k, (low, high) in m.dims.items()},
        **{f"mesh {k}": str(n) for k, n in m.mesh.items()},
        **{k: q.declaration() for k, q in m.quants.items()},
        **{k: f"buffer[{size}]" for k, size in m.buffers.items()},
        **{k: f"const({str(x.dtype).removeprefix('torch.')}{list(x.shape)})" for k, x in m.consts.items()},
    }


def _whole(old: Func | None, new: Func | None) -> FuncDiff:
    """A function that is new, or gone: all of it."""
    f, kind = (new, "added") if new else (old, "removed")
    assert f is not None
    items = [Item(f.name, x) for x in (*f.params, *statements(f.body))]
    return FuncDiff(
        old, new, Alignment(), [Change(kind, None if new else x, x if new else None) for x in items]
    )


def _compare(old: Func, new: Func, renamed: dict[str, str]) -> FuncDiff:
    pairs = align(old, new, renamed)
    found = FuncDiff(old, new, pairs)
    if [pairs.values.get(v) for v in old.returns] != new.returns:
        found.returns = _names(old.returns), _names(new.returns)
    before: dict[Param | Stmt, Param | Stmt] = {
        b: a for a, b in (*pairs.params.items(), *pairs.stmts.items())
    }
    gone = [x for x in (*old.params, *statements(old.body)) if x not in pairs.stmts and x not in pairs.params]
    place = {x: i for i, x in enumerate((*old.params, *statements(old.body)))}
    moved = {*_moved(pairs, place, new), *_exchanged(pairs, old, new)}
    for b in (*new.params, *statements(new.body)):
        a = before.get(b)
        if a is not None:  # what was removed before it goes before it
            while gone and place[gone[0]] < place[a]:
                found.changes.append(Change("removed", Item(old.name, gone.pop(0)), None))
        kind = _kind(a, b, pairs, renamed, moved)
        if kind is not None:
            found.changes.append(Change(kind, a and Item(old.name, a), Item(new.name, b)))
    found.changes += [Change("removed", Item(old.name, x), None) for x in gone]
    return found


def _kind(
    a: Param | Stmt | None,
    b: Param | Stmt,
    pairs: Alignment,
    renamed: dict[str, str],
    moved: set[Param | Stmt],
) -> Kind | None:
    """How two paired things differ, the greatest difference first."""
    if a is None:
        return "added"
    if isinstance(a, Param) or isinstance(b, Param):
        assert isinstance(a, Param) and isinstance(b, Param)
        bound = [p.weight and show_weight(p.weight) for p in (a, b)]
        types = [(str(p.type), p.buffer) for p in (a, b)]
        if bound[0] != bound[1]:
            return "changed"
        return "retyped" if types[0] != types[1] else "moved" if b in moved else None
    if renamed.get(op_of(a), op_of(a)) != op_of(b):
        return "replaced"
    if settings(a) != settings(b) or [pairs.values.get(v) for v in reads(a)] != reads(b):
        return "changed"
    if [(str(r.type), r.buffer) for r in a.results] != [(str(r.type), r.buffer) for r in b.results]:
        return "retyped"
    return "moved" if b in moved else None


def _names(values: list[Value]) -> str:
    return ", ".join(v.name for v in values)


def _exchanged(pairs: Alignment, old: Func, new: Func) -> set[Param]:
    """Data that is given in another order; that of weights means nothing."""
    was = [pairs.params[p] for p in old.data if p in pairs.params]
    now = [p for p in new.data if p in was]
    return {b for a, b in zip(was, now, strict=False) if a is not b}


def _moved(pairs: Alignment, place: dict[Param | Stmt, int], new: Func) -> set[Stmt]:
    """The fewest statements that stand in another order than their pairs: all but a longest rising run."""
    order = {b: place[a] for a, b in pairs.stmts.items()}
    now = [b for b in statements(new.body) if b in order]
    ends: list[Stmt] = []  # of the rising runs of each length the one that ends first
    before: dict[Stmt, Stmt | None] = {}
    for b in now:
        at = bisect_left(ends, order[b], key=order.__getitem__)
        before[b] = ends[at - 1] if at else None
        ends[at : at + 1] = [b]
    kept: set[Stmt] = set()
    last = ends[-1] if ends else None
    while last is not None:
        kept.add(last)
        last = before[last]
    return set(now) - kept


@dataclass(frozen=True)
class _Homes:
    """Which function a layer calls: by where the layer comes from (``model.layers.3``), and by its number."""

    places: dict[str, str]
    numbers: dict[int, set[str]]

    @staticmethod
    def of(*modules: Module) -> _Homes:
        homes = _Homes({}, defaultdict(set))
        for c, i, _ in (call for m in modules for call in m.calls()):
            if i is not None:
                homes.places[c.loc.replace("{i}", str(i))] = c.callee
                homes.numbers[i].add(c.callee)
        return homes

    def may_be(self, x: Item, func: str) -> bool:
        """Whether ``x`` may be of a layer that calls ``func``, as far as it says where it comes from."""
        if isinstance(x.at, Param):
            number = re.search(r"\d+", show_weight(x.at.weight)) if x.at.weight else None
            return number is None or func in self.numbers.get(int(number[0]), {func})
        path = loc_of(x.at).partition(" ")[0].split(".")
        heads = (".".join(path[:n]) for n in range(len(path), 0, -1))
        return next((self.places[h] for h in heads if h in self.places), func) == func


def _move(funcs: list[FuncDiff], homes: _Homes) -> None:
    """What is gone from one function and stands in another one has moved, if either is wholly new or gone.

    Of layers that became a function, the nodes of all of them moved into it: several onto one.
    """
    for f in funcs:
        if f.old is None or f.new is None:
            _from_elsewhere(f, [g for g in funcs if g is not f], homes)


def _from_elsewhere(whole: FuncDiff, others: list[FuncDiff], homes: _Homes) -> None:
    came = whole.old is None
    here: dict[object, list[Change]] = defaultdict(list)
    for c in whole.changes:
        here[_likeness(c.new if came else c.old)].append(c)
    used: set[int] = set()
    for g in others:
        seen: dict[object, int] = defaultdict(int)
        for i, c in enumerate(g.changes):
            side = c.old if came else c.new
            key = _likeness(side) if c.kind == ("removed" if came else "added") else None
            if side is None or key is None or key not in here or not homes.may_be(side, whole.name):
                continue
            at = here[key][seen[key] % len(here[key])]
            seen[key] += 1
            used.add(id(at))
            g.changes[i] = Change("moved", c.old, at.new) if came else Change("moved", at.old, c.new)
    whole.changes = [c for c in whole.changes if id(c) not in used]


def _likeness(x: Item | None) -> object:
    """What a node keeps wherever it goes: its op, attributes, types, and line of the source model.

    What a weight keeps is its type and the tensor that it is bound to, but for a layer's number.
    """
    match x.at if x else None:
        case Node() as n:
            types = tuple(str(v.type) for v in (*n.values, *n.results))
            return n.op.name, settings(n), types, n.loc.rpartition(" ")[2] if ":" in n.loc else ""
        case Param(weight=weight) as p if weight is not None:
            return str(p.type), re.sub(r"\d+|\{i\}", "#", show_weight(weight))
        case _:
            return None
