"""Which nodes of a flat function belong to which layer, told by the number that varies in their names.

A layer's module path and its weights' names hold its number (``model.layers.3.self_attn.q_proj``). Of all
numbered places in a path the outermost one whose number varies over the model counts: experts inside a layer
stay inside. Nodes without a path go where their weights or their operands are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from irloom.ir.graph import Func, Node, Param, Value
from irloom.ir.weight_expr import Const, Tensor, WeightExpr, numbered, operands, tensor_names, with_operands

_PLACE = re.compile(r"\S+:\d+$")


@dataclass(frozen=True)
class Site:
    """A numbered place: ``Site("model.layers", 3)``."""

    prefix: str
    number: int


@dataclass
class Layer:
    """The nodes of one layer, in order. ``number`` is the one in its weights' names."""

    site: Site
    number: int
    nodes: list[Node]


@dataclass
class Cut:
    """A flat function in order: layers, and the nodes between them."""

    parts: list[Layer | list[Node]]
    sites: Sites

    @property
    def layers(self) -> list[Layer]:
        """The layers, in order."""
        return [p for p in self.parts if isinstance(p, Layer)]


@dataclass
class Sites:
    """Finds the site of a path; ``seen`` holds every number that stands behind a prefix."""

    seen: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def add(self, path: str) -> None:
        """Take a path into account."""
        for prefix, number in _numbers(path):
            self.seen[prefix].add(number)

    def of(self, path: str) -> Site | None:
        """The outermost numbered place of ``path`` whose number varies."""
        for prefix, number in _numbers(path):
            if len(self.seen[prefix]) > 1:
                return Site(prefix, number)
        return None

    def abstract(self, expr: WeightExpr, number: int, alone: bool) -> WeightExpr:
        """``expr`` with ``{i}`` where its names bear the layer's number.

        Where the layer is ``alone`` in reading it, with ``{i-1}`` for the layer before and ``{i+1}`` for the
        next, too: a rewrite has joined the end of one layer and the start of another.
        """

        def rename(name: str) -> str:
            site = self.of(name)
            if site is None or abs(site.number - number) > alone:
                return name
            head = f"{site.prefix}." if site.prefix else ""
            rest = name[len(head) + len(str(site.number)) :]
            return f"{head}{numbered(site.number - number)}{rest}"

        return rename_tensors(expr, rename)


def _numbers(path: str) -> Iterable[tuple[str, int]]:
    tokens = path.split(".")
    return [
        (".".join(tokens[:k]), int(t)) for k, t in enumerate(tokens) if t.isdecimal() and str(int(t)) == t
    ]


def rename_tensors(expr: WeightExpr, rename: Callable[[str], str]) -> WeightExpr:
    """``expr`` over tensors of other names."""
    if isinstance(expr, Tensor):
        return Tensor(rename(expr.name))
    return with_operands(expr, [rename_tensors(x, rename) for x in operands(expr)])


def split_loc(loc: str) -> tuple[str, str]:
    """Module path and source place of a location; either may be empty.

    >>> split_loc("model.norm modeling_x.py:57"), split_loc("modeling_x.py:57"), split_loc("model.norm")
    (('model.norm', 'modeling_x.py:57'), ('', 'modeling_x.py:57'), ('model.norm', ''))
    """
    path, _, place = loc.partition(" ")
    return ("", loc) if _PLACE.match(path) and not place else (path, place)


def join_loc(path: str, loc: str) -> str:
    """``loc`` under the module path ``path``: what a layer's function says, for one layer.

    >>> join_loc("model.layers.3", "self_attn.q_proj x.py:15"), join_loc("model.layers.3", "x.py:20")
    ('model.layers.3.self_attn.q_proj x.py:15', 'model.layers.3 x.py:20')
    """
    inner, place = split_loc(loc)
    if not path or not loc:
        return loc
    return " ".join(part for part in (".".join(part for part in (path, inner) if part), place) if part)


def cut(f: Func) -> Cut:
    """Cut ``f`` into layers. Statements may move, never past one that they depend on."""
    nodes = f.nodes
    sites = Sites()
    for n in nodes:
        sites.add(split_loc(n.loc)[0])
    located = any(len(numbers) > 1 for numbers in sites.seen.values())
    for p in f.weights:
        for name in _names(p):
            sites.add(name)
    claims = {n: _claim(n, sites, located) for n in nodes}
    found = list(dict.fromkeys(c for c in claims.values() if isinstance(c, Site)))
    ranks = _rank(nodes, claims, found)
    _hoist(f, nodes, ranks)
    _trim(nodes, ranks, claims, 2 * len(found) - 1)
    return _parts(nodes, ranks, found, sites)


def _names(p: Value) -> list[str]:
    return tensor_names(p.weight) if isinstance(p, Param) and p.weight is not None else []


_OUTSIDE = "outside"


def _claim(n: Node, sites: Sites, located: bool) -> Site | str | None:
    """The layer that a node says it is in, ``_OUTSIDE`` of all, or None when it does not say."""
    path = split_loc(n.loc)[0]
    if path and (site := sites.of(path)):
        return site
    if path and located:
        return _OUTSIDE
    names = [name for v in n.values for name in _names(v)]
    numbered = [site for name in names if (site := sites.of(name))]
    return numbered[0] if numbered else _OUTSIDE if names else None


def _rank(nodes: list[Node], claims: dict[Node, Site | str | None], found: list[Site]) -> dict[Node, int]:
    """An odd rank is layer ``rank // 2``, an even one is between layers; no node ranks below an operand.

    What stands outside but between two layers of a stack runs at the end of the first, so that the stack
    stays whole.
    """
    own = {site: 2 * k + 1 for k, site in enumerate(found)}
    last = set({site.prefix: own[site] for site in found}.values())
    ranks: dict[Node, int] = {}
    made: dict[Value, int] = {}
    for n in nodes:
        base = max((made.get(v, 0) for v in n.values), default=0)
        claim = claims[n]
        if isinstance(claim, Site):
            rank = own[claim] if base <= own[claim] else base + base % 2
        elif claim == _OUTSIDE and base in last:
            rank = base + 1
        else:
            rank = base
        ranks[n] = rank
        made.update(dict.fromkeys(n.results, rank))
    return ranks


def _hoist(f: Func, nodes: list[Node], ranks: dict[Node, int]) -> None:
    """Move in front of all layers what depends on none, and is read by several (positions, rotary tables)."""
    constant: set[Value] = {p for p in f.params if p.weight is None or isinstance(p.weight, Const)}
    for n in nodes:
        if all(v in constant for v in n.values):
            constant.update(n.results)
    readers = f.readers()
    for n in reversed(nodes):
        if not set(n.results) <= constant or not ranks[n] % 2:
            continue
        if any(ranks[r] != ranks[n] for v in n.results for r in readers.get(v, []) if isinstance(r, Node)):
            ranks[n] = 0


def _trim(
    nodes: list[Node], ranks: dict[Node, int], claims: dict[Node, Site | str | None], last: int
) -> None:
    """Take from the end of the last layer what only drifted there, as the layer before has no such end."""
    if last < 3:
        return
    final = [n for n in nodes if ranks[n] == last]
    before = [n for n in nodes if ranks[n] == last - 2]
    extra = len(final) - len(before)
    if extra > 0 and all(claims[n] is None for n in final[-extra:]):
        ranks.update(dict.fromkeys(final[-extra:], last + 1))


def _parts(nodes: list[Node], ranks: dict[Node, int], found: list[Site], sites: Sites) -> Cut:
    by_rank: dict[int, list[Node]] = defaultdict(list)
    for n in nodes:
        by_rank[ranks[n]].append(n)
    kept = _worth(by_rank, found)
    parts: list[Layer | list[Node]] = []
    for rank in sorted(by_rank):
        members = by_rank[rank]
        site = found[rank // 2] if rank % 2 else None
        if site is not None and site.prefix in kept:
            parts.append(Layer(site, _number(site, members, sites), members))
        elif parts and isinstance(parts[-1], list):
            parts[-1] += members
        else:
            parts.append(members)
    return Cut(parts, sites)


def _worth(by_rank: dict[int, list[Node]], found: list[Site]) -> set[str]:
    """Prefixes that number layers, not the two linears of a projector: several, of some nodes each."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for rank, members in by_rank.items():
        if rank % 2:
            sizes[found[rank // 2].prefix].append(len(members))
    return {prefix for prefix, n in sizes.items() if len(n) > 1 and sum(n) >= 3 * len(n)}


def _number(site: Site, nodes: list[Node], sites: Sites) -> int:
    """The number in the weights' names where they agree on one, else that of the module path."""
    weights = {v for n in nodes for v in n.values if isinstance(v, Param)}
    numbers = {s.number for p in weights for name in _names(p) if (s := sites.of(name))}
    return numbers.pop() if len(numbers) == 1 else site.number
