"""Repeated layers become one function that is called with different weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from irloom.ir.elem import Elem
from irloom.ir.graph import Arg, Builder, Call, Func, Index, Module, Node, Param, Stmt, Value
from irloom.ir.op import OPS
from irloom.ir.weight_expr import Const, WeightExpr

from .core import Changes, Pass, spend
from .layers import Cut, Layer, cut, split_loc
from .near_miss import if_asked
from .roll import roll

SHORT = ("causal_conv", "token_shift")
"""Recurrent ops that stand beside the one that a layer is known for."""


@dataclass(frozen=True)
class Outline(Pass):
    """Find layers of the same structure in a flat ``main`` and make each distinct one a function.

    Two layers are the same when their nodes, attributes, types, operands and weight names are, but for the
    layer's number, which becomes ``{i}``; where a fusion has joined the end of one layer and the start of the
    next, the weights that came from the layer before are ``{i-1}``. Layers that differ in an attribute, a
    window or a rotary base, are distinct functions. What does not depend on the layer (positions, rotary
    tables) is computed in ``main`` and passed in. Calls that repeat in a period become a loop. ``inline`` is
    the inverse.
    """

    after: ClassVar[tuple[str, ...]] = ("canonicalize", "raise")
    before: ClassVar[tuple[str, ...]] = ("kv-cache", "plan-memory")

    def run(self, m: Module) -> Changes:
        """Rewrite ``main``; nothing happens when it calls functions already or has no repeated layers."""
        changes = Changes()
        if any(not isinstance(s, Node) for s in m.main.body):
            return Changes(near_misses=if_asked("main", "it calls functions already"))
        found = cut(m.main)
        if not found.layers:
            reason = "no nodes are of layers that differ by a number in their paths and weights"
            return Changes(near_misses=if_asked("main", reason))
        kinds = [k for k in _kinds(m, found) if spend()]
        if not kinds:
            return changes
        called = {id(layer) for k in kinds for layer in k.layers}
        found.parts = [p if not isinstance(p, Layer) or id(p) in called else p.nodes for p in found.parts]
        _replace(m.main, found, kinds)
        m.funcs = {**{k.func.name: k.func for k in kinds}, **m.funcs}
        roll(m.main)
        used = {v for s in m.main.body for v in s.values} | set(m.main.returns)
        m.main.params = [p for p in m.main.params if p.weight is None or p in used]
        for k in kinds:
            which = _spans([layer.number for layer in k.layers])
            changes.places.append(f"main.{k.func.name}: {len(k.func.body)} nodes, layers {which}")
        return changes

    def holds(self, m: Module) -> str | None:
        return None if any(True for _ in m.runs()) else "main calls no layer"


def _spans(numbers: list[int]) -> str:
    """Numbers for people: ``0-4, 6-10, 12``."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda x: x[1] - x[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


@dataclass
class _Shape:
    """What a layer is, apart from its number: ``key`` is equal for equal layers.

    ``inputs`` are the values it reads from outside and ``outputs`` those that others read, in order of first
    use and of definition; ``weights`` are its weights with ``{i}`` for the number.
    """

    key: Hashable
    inputs: list[Value]
    weights: dict[Param, WeightExpr]
    outputs: list[Value]


@dataclass
class _Kind:
    """Equal layers, and the function of what they do."""

    layers: list[Layer]
    shapes: list[_Shape]
    func: Func


def _kinds(m: Module, found: Cut) -> list[_Kind]:
    """Group the layers by structure, in order of appearance, and make the function of each group."""
    consts = _same_consts(m)
    last, shared = _last_reads(m.main, found), _shared(found)
    kinds: dict[Hashable, _Kind] = {}
    for at, layer in enumerate(found.parts):
        if isinstance(layer, Layer):
            outputs = [v for n in layer.nodes for v in n.results if last.get(v, -1) > at]
            shape = _shape(layer, found, consts, shared, outputs)
            kind = kinds.setdefault((layer.site.prefix, shape.key), _Kind([], [], Func("")))
            kind.layers.append(layer)
            kind.shapes.append(shape)
    for kind, name in zip(kinds.values(), _names(list(kinds.values())), strict=True):
        kind.func = _function(name, kind)
    return list(kinds.values())


def _same_consts(m: Module) -> dict[str, str]:
    """For each constant the first with the same entries: equal tables of two layers are one weight."""
    first: dict[str, str] = {}
    for name, x in m.consts.items():
        same = (k for k in first.values() if m.consts[k].dtype == x.dtype and m.consts[k].equal(x))
        first[name] = next(same, name)
    return first


def _last_reads(main: Func, found: Cut) -> dict[Value, int]:
    """The last part that reads each value; what ``main`` returns is read behind all."""
    last: dict[Value, int] = {}
    for at, part in enumerate(found.parts):
        for n in part.nodes if isinstance(part, Layer) else part:
            last.update(dict.fromkeys(n.values, at))
    last.update(dict.fromkeys(main.returns, len(found.parts)))
    return last


def _shared(found: Cut) -> set[Value]:
    """The values that several parts read."""
    readers = Counter(
        v
        for part in found.parts
        for v in {v for n in (part.nodes if isinstance(part, Layer) else part) for v in n.values}
    )
    return {v for v, count in readers.items() if count > 1}


def _shape(
    layer: Layer, found: Cut, consts: dict[str, str], shared: set[Value], outputs: list[Value]
) -> _Shape:
    inside: dict[Value, tuple[int, int]] = {}
    inputs: dict[Value, int] = {}
    weights: dict[Param, WeightExpr] = {}

    def ref(a: Arg) -> Hashable:
        if not isinstance(a, Value):
            return ("number", type(a), repr(a))
        if a in inside:
            return ("inside", *inside[a])
        if not isinstance(a, Param) or a.weight is None:
            return ("input", inputs.setdefault(a, len(inputs)), a.type)
        if a not in weights:
            match a.weight:
                case Const(const):
                    weights[a] = Const(consts[const])
                case expr:
                    weights[a] = found.sites.abstract(expr, layer.number, a not in shared)
        return ("weight", weights[a], a.type)

    rows: list[Hashable] = []
    for at, n in enumerate(layer.nodes):
        attrs = tuple((k, type(v), repr(v)) for k, v in n.attrs.items())
        rows.append((n.op.name, tuple(map(ref, n.args)), attrs, tuple(r.type for r in n.results)))
        inside.update((r, (at, k)) for k, r in enumerate(n.results))
    key = (tuple(rows), tuple(inside[v] for v in outputs))
    return _Shape(key, list(inputs), weights, outputs)


def _names(kinds: list[_Kind]) -> list[str]:
    """``layer``; of several ``layer_sliding``, ``layer_full``, ``layer_ssd_scan`` where they look back in
    other ways, ``layer_dense``, ``layer_moe`` where only some have experts, else numbers.
    """
    prefixes = list(dict.fromkeys(k.layers[0].site.prefix for k in kinds))

    def name(k: _Kind) -> str:
        prefix = k.layers[0].site.prefix
        base = (
            "layer"
            if len(prefixes) == 1
            else re.sub(r"\W", "_", f"{prefix.rpartition('.')[0]}.layer").lstrip("_")
        )
        alone = sum(x.layers[0].site.prefix == prefix for x in kinds) == 1
        return base if alone or not _flavor(k) else f"{base}_{_flavor(k)}"

    wanted = [name(k) for k in kinds]
    flavors = {(k.layers[0].site.prefix, _flavor(k)) for k in kinds}
    if len(prefixes) == 1 and len(flavors) == 1:
        wanted = ["layer"] * len(kinds)
    has = {(w, _experts(k)) for w, k in zip(wanted, kinds, strict=True)}
    for at, (w, k) in enumerate(zip([*wanted], kinds, strict=True)):
        if (w, True) in has and (w, False) in has:
            wanted[at] = f"{w}_{'moe' if _experts(k) else 'dense'}"
    count, seen = Counter(wanted), Counter[str]()
    out: list[str] = []
    for w in wanted:
        out.append(w if count[w] == 1 else f"{w}_{seen[w]}")
        seen[w] += 1
    return out


def _experts(k: _Kind) -> bool:
    return any(n.op.name in ("expert_linear", "moe") for n in k.layers[0].nodes)


def _flavor(k: _Kind) -> str:
    """How a layer looks back: the reach of its attention, or its recurrence; nothing where it does not."""
    attends = [n.attrs for n in k.layers[0].nodes if "window" in n.attrs]
    if not attends:
        recurs = [n.op.name for n in k.layers[0].nodes if n.op.carried is not None]
        return next((name for name in recurs if name not in SHORT), recurs[-1] if recurs else "")
    if any(a.get("stride", 1) != 1 for a in attends):
        return "compressed"
    if any(a.get("chunk") is not None for a in attends):
        return "chunked"
    return "full" if any(a["window"] is None for a in attends) else "sliding"


def _function(name: str, kind: _Kind) -> Func:
    """The function of a kind of layer, after its first one."""
    layer, shape = kind.layers[0], kind.shapes[0]
    f = Func(name)
    names = Builder(f)
    new: dict[Value, Value] = {}
    moving = _moving(kind)
    for at, v in enumerate(shape.inputs):
        new[v] = Param(names.fresh("x" if at == moving else _base(v.name)), v.type)
    bound: dict[WeightExpr, Param] = {}
    for old, expr in shape.weights.items():
        if expr not in bound:
            bound[expr] = Param(names.fresh(_base(old.name)), old.type, None, expr)
        new[old] = bound[expr]
    f.params = [p for p in dict.fromkeys(new.values()) if isinstance(p, Param)]
    for n in layer.nodes:
        args = [new[a] if isinstance(a, Value) else a for a in n.args]
        results = [Value(names.fresh(_named(n, r)), r.type) for r in n.results]
        new.update(zip(n.results, results, strict=True))
        loc = _relative(n.loc, layer)
        f.body.append(Node(n.op, args, dict(n.attrs), results, loc, n.made_by))
    f.returns = [new[v] for v in shape.outputs]
    return f


def _moving(kind: _Kind) -> int:
    """The first input that changes from layer to layer, the hidden state; of one layer the first tensor."""
    inputs = list(zip(*(s.inputs for s in kind.shapes), strict=True))
    tensors = [at for at, row in enumerate(inputs) if isinstance(row[0].type.elem, Elem)]
    changing = [at for at in tensors if len(set(inputs[at])) > 1]
    return next(iter(changing or tensors), -1)


def _moved(kind: _Kind, shape: _Shape) -> Value | None:
    """The output that is to the next layer what its moving input is to this one."""
    at = _moving(kind)
    alike = [v for v in shape.outputs if at >= 0 and v.type == shape.inputs[at].type]
    return next(iter(alike or shape.outputs), None)


def _named(n: Node, r: Value) -> str:
    """The name of a result; one that only says what op it came from, says what op it comes from now."""
    base = _base(r.name)
    return n.op.name if base in OPS and len(n.results) == 1 else base


def _base(name: str) -> str:
    """A name without the number that told it from its equals in other layers."""
    return re.sub(r"(_\d+)+$", "", name) or name


def _relative(loc: str, layer: Layer) -> str:
    path, place = split_loc(loc)
    own = f"{layer.site.prefix}.{layer.site.number}".lstrip(".")
    if path == own or path.startswith(f"{own}."):
        path = path[len(own) + 1 :]
    return " ".join(part for part in (path, place) if part)


def _replace(main: Func, found: Cut, kinds: list[_Kind]) -> None:
    """Let ``main`` call the functions where the layers stood."""
    which = {id(layer): (k, shape) for k in kinds for layer, shape in zip(k.layers, k.shapes, strict=True)}
    body: list[Stmt] = []
    swap: dict[Value, Value] = {}
    outside = [v for part in found.parts if isinstance(part, list) for n in part for v in n.results]
    _rename(main, kinds[0], outside)
    for part in found.parts:
        if isinstance(part, list):
            body += part
            continue
        kind, shape = which[id(part)]
        main_out = _moved(kind, shape)
        results = [Value("x" if v is main_out else _base(v.name), v.type) for v in shape.outputs]
        swap.update(zip(shape.outputs, results, strict=True))
        loc = f"{part.site.prefix}.{{i}}".lstrip(".")
        body.append(Call(kind.func.name, Index(None, part.number), list(shape.inputs), [], results, loc))
    main.body = body
    main.replace_uses(swap)


def _rename(main: Func, first: _Kind, outside: list[Value]) -> None:
    """Number the names in ``main`` anew; what enters the first layer is ``x``: loops carry it on as that."""
    kept = set(outside)
    used = {v for s in main.body if s.results[0] in kept for v in s.values}
    names = Builder(main, taken={p.name for p in main.params if p.weight is None})
    at = _moving(first)
    entering = first.shapes[0].inputs[at] if at >= 0 else None
    for p in main.params:
        if p.weight is not None and p in used:
            p.name = names.fresh(_base(p.name))
    for v in outside:
        v.name = names.fresh("x" if v is entering else _base(v.name))
