"""Choose the element type of a program, op by op: ``precision(bf16, override=('0-1=f32', 'lm_head=f32'))``.

Every op that depends on the model's weights, or on tensors that ``main`` is given, computes in the element
that is chosen for it; casts stand only where two that differ meet. Weights are read in the element of what
reads them, so no cast of a weight is left in the program. What ``main`` takes and returns stays as it is, and
so do positions, rotary tables and everything else that is made of numbers alone.

An option says which ops it is for by a pattern that may stand anywhere in a module path or an op's name
(``mlp``, ``lm_head``, ``rms_norm``), by layers (``0-3``, ``28-``, ``-1`` for the last), or by both
(``0-3,-1:mlp``). Layers that were outlined into one function and are to differ get functions of their own,
and hand on the hidden state in the element of the layer. Caches follow the keys and values that are put in
them; ``kv-cache(elem='bf16')`` says otherwise.

Some operands keep the element they have, whatever is computed around them: rotary frequencies, weights of
recurrences (decay rates), quantized weights. Ops that the model itself computes in another element than most,
behind casts of its own, keep that unless an option names them. An op that does not take the element is left
as it is, which is a near miss.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.errors import PipelineError
from irloom.ir.graph import Call, Func, Loop, Module, Node, Stmt, Value
from irloom.ir.ops import cast
from irloom.ir.weight_expr import Const

from .core import Changes, Pass, spend
from .elements import Typing, is_float
from .layers import join_loc, split_loc
from .selection import Choices, Layers
from .split_layers import split_layers

Name = Literal["bf16", "f16", "f32"]
_BUDGET = {"bf16": 0.05, "f16": 0.01, "f32": 0.05}  # a program in bf16 moves by what it rounded


@dataclass(frozen=True)
class Precision(Pass):
    """Options.

    ``elem``: bf16, f16 or f32. ``skip``: ops that keep the element they have. ``override``: ``"which=elem"``,
    the first that matches counts (``override=("0-1=f32", "rms_norm=f32")``).
    """

    elem: Name = "bf16"
    skip: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "raise", "outline", "absorb-mla")
    before: ClassVar[tuple[str, ...]] = ("kv-cache", "quantize", "plan-memory")
    lossy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for text in self.override:
            which, _, elem = text.rpartition("=")
            if not which or elem not in _BUDGET:
                raise PipelineError(
                    f"precision: option `override` holds {text!r}", hint='"which=elem": "lm_head=f32"'
                )

    def budget(self) -> float:
        """What a model of some layers moves by when each op rounds to the coarsest of the elements."""
        return max(_BUDGET[e] for e in (self.elem, *(o.rpartition("=")[2] for o in self.override)))

    def run(self, m: Module) -> Changes:
        changes, layers = Changes(), Layers.of(m)
        overrides = [(which, ELEMS[elem]) for which, _, elem in (o.rpartition("=") for o in self.override)]
        rules: list[tuple[str, Elem | None]] = [*((text, None) for text in self.skip), *overrides]
        choices = Choices[Elem | None](layers, rules, ELEMS[self.elem])
        active = _active(m)
        base = _base(m, active)
        wanted = {
            name: {i: _wanted(m, f, i, choices, active, base) for i in layers.indices(f)}
            for name, f in m.funcs.items()
        }
        if not spend():
            return changes
        made = split_layers(m, wanted)
        active = _active(m)
        plans = {f.name: plan for of in made.values() for plan, f in of.items()}
        streams = _streams(m, {name: plan.stream for name, plan in plans.items()}, ELEMS[self.elem])
        for name, f in m.funcs.items():
            changes += Typing(m, f, plans[name].elems, streams, active).run()
        changes.near_misses += choices.unused("op")
        return changes


@dataclass(frozen=True)
class Wanted:
    """What is chosen for a function: the element of each node, None for those that stay as they are, and that
    of the tensors that it takes and returns.
    """

    elems: tuple[Elem | None, ...]
    stream: Elem | None


def _wanted(
    m: Module,
    f: Func,
    index: int | None,
    choices: Choices[Elem | None],
    active: set[Value],
    base: Elem | None,
) -> Wanted:
    calls = (c.loc for c, _ in m.runs() if c.callee == f.name)
    path = next(calls, "").replace("{i}", str(index))
    elems: list[Elem | None] = []
    for n in f.nodes:
        own = _own(n) if n.op is not cast and active.intersection(n.values) else None
        names = [split_loc(join_loc(path, n.loc))[0] or path, n.op.name]
        rule = choices.rule(names, index) if own else None
        default = choices.default if own == base else own
        elems.append(own and ((rule[1] or own) if rule else default))
    inside = f.name != "main" and path
    return Wanted(tuple(elems), choices.of([path], index) if inside else None)


def _base(m: Module, active: set[Value]) -> Elem | None:
    """The element in which most of the program computes."""
    nodes = [
        n for f in m.funcs.values() for n in f.nodes if n.op is not cast and active.intersection(n.values)
    ]
    count = Counter(own for n in nodes if (own := _own(n)))
    return max(count, key=count.__getitem__, default=None)


def _own(n: Node) -> Elem | None:
    """The element that an op computes in as it is."""
    floats = [r.type.plain for r in n.results if is_float(r)] or [
        v.type.plain for v in n.values if is_float(v)
    ]
    return floats[0] if floats else None


def _active(m: Module) -> set[Value]:
    """What depends on weights of the checkpoint, or on tensors that ``main`` is given."""
    active: set[Value] = set()
    given: dict[str, list[list[bool]]] = {}
    for f in reversed(m.funcs.values()):
        rows = given.get(f.name)
        for at, p in enumerate(f.data):
            reached = is_float(p) if rows is None else any(row[at] for row in rows if at < len(row))
            if reached:
                active.add(p)
        active.update(p for p in f.weights if not isinstance(p.weight, Const))
        for s in f.body:
            _mark(s, active, given)
    return active


def _mark(s: Stmt, active: set[Value], given: dict[str, list[list[bool]]]) -> None:
    match s:
        case Node():
            if active.intersection(s.values):
                active.update(s.results)
        case Call():
            given.setdefault(s.callee, []).append([a in active for a in s.args])
            active.update(s.results)
        case Loop():
            active.update(s.params)
            for inner in s.body:
                _mark(inner, active, given)
            active.update(s.results)


def _streams(m: Module, streams: dict[str, Elem | None], default: Elem) -> dict[str, Elem | None]:
    """The elements in which functions take and return tensors: one for all that a loop calls."""
    again = "main" in m.funcs
    while again:
        again = False
        for loop in (s for s in m.main.body if isinstance(s, Loop)):
            called = [c.callee for c in loop.body if isinstance(c, Call)]
            if len({streams[name] for name in called}) > 1:
                streams.update(dict.fromkeys(called, default))
                again = True
    return streams
