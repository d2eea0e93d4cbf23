"""Lowering: a module becomes a Python program of kernel calls on preallocated buffers.

The program is text that a person can read and Python can run: one function per function of the module, whose
parameters say where each value lives and whose statements call kernels. An op without a kernel runs its body.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from irloom.backends.cpu import convention
from irloom.backends.cpu.elements import refuse_elements
from irloom.backends.cpu.place import Place, by_rows
from irloom.backends.cpu.program import INDENT, LOWERINGS, Bound, Program, Shared
from irloom.ir.buffers import storage
from irloom.ir.elem import CACHES, ELEMS, SEQS, Cached
from irloom.ir.graph import Arg, Call, Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.ops import OPS
from irloom.ir.show import show_attr, show_weight
from irloom.ir.weight_expr import offsets

F32 = ELEMS["f32"]
RESERVED = frozenset(
    [
        "T",
        "S",
        "i",
        "seqs",
        "tokens",
        "positions",
        "inf",
        "range",
        "buffer",
        "rows",
        "packed",
        "vector",
        "tensor",
        "turns",
        "copy",
        "reference",
        "embedding",
        "linear",
        "linear_act",
        "expert_linear",
        "head_linear",
        "moe",
        "softmax",
        "sums",
        "gather",
        "move",
        "topk",
        "route",
        "rms_norm",
        "l2_norm",
        "add_rms_norm",
        "layer_norm",
        "rope",
        "rope_append",
        "kv_append",
        "paged_attention",
        "act_mul",
        "last_rows",
        "kernels",
        *(op.name for op in OPS if op.name.startswith("carried_")),
    ]
)
"""Names that mean something in every program; a value of such a name gets another."""


def lower(m: Module) -> Program:
    """The program of a module whose pipeline has run; ``IRError`` for elements that no kernel reads."""
    refuse_elements(m)
    own_lowerings()
    program, shared = Program(), Shared(m)
    called = {"main", *(c.callee for c, _, _ in m.calls())}
    functions = [Lowering(program, shared, f).text() for f in m.funcs.values() if f.name in called]
    buffers = [f'{name} = buffer("{elem}", {size})' for name, (elem, size) in program.buffers.items()]
    tables = [f"{name} = {made}" for made, name in shared.tables.items()]
    program.text = "\n\n\n".join(["\n".join([f"# {m.model} for cpu", *buffers, *tables]), *functions]) + "\n"
    return program


def own_lowerings() -> None:
    """Import what lowers irloom's own ops."""
    from irloom.backends.cpu import elementwise, experts, lowerings, moves, recurrent, sums

    registering = (elementwise, experts, lowerings, moves, recurrent, sums)
    assert all(registering), "imported for their lowerings"


class Lowering:
    """Lowers one function: ``places`` says where each value lives, ``given`` what the parameters are."""

    def __init__(self, program: Program, shared: Shared, func: Func) -> None:
        self.program, self.shared, self.func = program, shared, func
        self.readers, self.producers, self.storage = func.readers(), func.producers(), storage(func)
        self.order = {id(s): i for i, s in enumerate(func.body)}
        self.places: dict[Value, Place] = {}
        self.given: dict[str, str] = {}
        self.named: dict[Place, str] = {}
        self.lines: list[str] = []
        self.done: set[int] = set()
        self.holds: dict[str, Value] = {}
        self.why: dict[int, str] = {}
        self.layers = shared.layers(func.name)

    # the shape of the text

    def text(self) -> str:
        """The function as Python."""
        convention.enter(self)
        for s in self.func.body:
            if id(s) not in self.done:
                self._statement(s, INDENT)
        convention.leave(self)
        index = ["i"] if self.layers else []
        own = self.func.data if self.func.name != "main" else []
        caches = [p.name for p in own if isinstance(p.type.elem, Cached)]
        head = [*index, *caches, *(f"{name}={made}" for name, made in self.given.items())]
        body = self.lines or [f"{INDENT}pass"]
        return "\n".join([f"def {self.func.name}(", *(f"{INDENT}{h}," for h in head), "):", *body])

    def call(self, kernel: str, *args: Any, loc: str = "", **named: Any) -> None:
        """Emit a kernel call; values and places are named, everything else is written as it is."""
        given = [self.ref(a) for a in args] + [f"{k}={self.ref(v)}" for k, v in named.items()]
        self.lines.append(f"{INDENT}{kernel}({', '.join(given)})" + (f"  # {loc}" if loc else ""))

    def ref(self, a: Any) -> str:
        """How the text names an argument."""
        if isinstance(a, Value):
            return self.name_of(a)
        if isinstance(a, Place):
            return self.named[a]
        return a if isinstance(a, str) else show_attr(a)

    def name_of(self, v: Value) -> str:
        """The name of a value's place; it becomes a parameter of the function the first time."""
        if isinstance(v.type.elem, Cached):
            return self._root_cache(v)
        if v.type.elem in (SEQS, CACHES):
            return "seqs" if v.type.elem == SEQS else v.name
        return self.name_place(self.places[v], v.name)

    def name_place(self, place: Place, name: str = "") -> str:
        """The name of a place, ``name`` when it is new and that is free."""
        if place not in self.named:
            name = self._free(name or f"to_{place.buffer}")
            self.named[place] = name
            self.given[name] = place.text()
        return self.named[place]

    def _free(self, name: str) -> str:
        while name in self.given or name in RESERVED or name in self.shared.m.funcs:
            name += "_"
        return name

    def _root_cache(self, v: Value) -> str:
        made = self.producers.get(v)
        while isinstance(made, Node):
            v = next(x for x in made.values if isinstance(x.type.elem, Cached))
            made = self.producers.get(v)
        return v.name

    # places

    def place(self, v: Value) -> Place:
        """Where ``v`` lives: a buffer of the memory plan, or one of its own when the plan leaves it out."""
        if v not in self.places:
            planned = v.buffer if self.storage.get(v, v) is v else None  # what could not be a view is a copy
            self.places[v] = self.own(planned or f"{self.func.name}_{v.name}", v)
        return self.places[v]

    def place_early(self, v: Value, at: Node) -> Place:
        """Where ``v`` lives when it is written already at ``at``: not in what is in use until it was due."""
        if v in self.places:
            return self.places[v]
        start, due = self.order[id(at)], self.order[id(self.producers[v])]
        between = self.func.body[start : due + 1]
        used = {self.places[x].buffer for s in between for x in s.values if x in self.places}
        used |= {str(r.buffer) for s in between for r in s.results if r is not v}
        if v.buffer in used:
            self.places[v] = self.own(f"{self.func.name}_{v.name}", Value(v.name, v.type))
        return self.place(v)

    def own(self, name: str, v: Value) -> Place:
        """Put ``v`` at the start of a buffer, which is made, or made larger, when needed."""
        self.program.buffers[name] = (v.type.plain, self.shared.m.buffers.get(name, v.type.nbytes))
        return Place.of(name, v)

    def alias(self, v: Value, place: Place | None) -> bool:
        """See ``v`` inside memory of another value, where nothing overwrites that while ``v`` is read."""
        if place is None or not self._stays(v, place.buffer):
            return False
        self.places[v] = place
        return True

    def _stays(self, v: Value, buffer: str) -> bool:
        made = self.order[id(self.producers[v])]
        last = self.last_read(v)
        writes = (r for s in self.func.body[made + 1 : last] for r in s.results)
        return not any(r.buffer == buffer and self.storage.get(r, r) is r for r in writes)

    def last_read(self, v: Value) -> int:
        """The last statement that reads ``v``, itself or through a view."""
        if v in self.func.returns:
            return len(self.func.body)
        last = 0
        for s in self.readers.get(v, []):
            last = max(last, self.order[id(s)])
            for r in s.results:
                if isinstance(s, Node) and s.op.name in ("reshape", "split", "slice"):
                    last = max(last, self.last_read(r))
        return last

    # weights

    def weight(self, a: Arg, form: str, bias: Param | None = None) -> str:
        """A weight in a form, as the text names it; ``None`` where it is absent."""
        if a is None:
            return "None"
        assert isinstance(a, Param) and a.weight is not None
        layers = self.layers if _per_layer(a) or _per_layer(bias) else None
        owner = self.func.name if layers else "shared"
        key = f"{owner}.{a.name}.{form}" if layers else f"{show_weight(a.weight)} as {form}"
        name = f"{self.func.name}.{a.name}" if form == "packed" else f"{self.func.name}.{a.name}.{form}"
        bound = self.program.weights.setdefault(key, Bound(name, form, a, layers, name, bias))
        if form == "packed" and _expr(bound.bias) != _expr(bias):  # the same bytes, once more
            other = replace(bound, name=f"{name} + {bias.name if bias else 'no bias'}", bias=bias)
            bound = self.program.weights.setdefault(f"{key} + {_expr(bias)}", other)
        made = f'{form}("{bound.name}")'
        local = next((k for k, v in self.given.items() if v == made), None)
        if local is None:
            local = self._free(a.name if form == "packed" else f"{a.name}_{form}")
            self.given[local] = made
        return f"{local}[i]" if layers else local

    def table_weight(self, p: Param) -> str | None:
        """A vector that is the same for all layers, for use outside of functions."""
        assert p.weight is not None
        if _per_layer(p):
            return None
        del self.given[self.weight(p, "vector")]
        return f'vector("{self.program.weights[f"{show_weight(p.weight)} as vector"].name}")'

    def is_weight(self, a: object) -> bool:
        """Whether an operand is bound to a weight."""
        return isinstance(a, Param) and a.weight is not None

    # patterns of the lowering

    def only_reader(self, v: Value, op: str) -> Node | None:
        """The node that alone reads ``v``, when it is of this op and not lowered yet."""
        readers = self.readers.get(v, [])
        if len(readers) != 1 or v in self.func.returns:
            return None
        (s,) = readers
        return s if isinstance(s, Node) and s.op.name == op and id(s) not in self.done else None

    def f32(self, *args: Arg) -> bool:
        """Whether all operands are rows of f32."""
        return all(isinstance(a, Value) and a.type.elem == F32 and by_rows(a.type.dims) for a in args)

    def decline(self, n: Node, why: str) -> bool:
        """Leave a node to its body, and say why; gives False, as a handler does."""
        self.program.declined.setdefault(n.op.name, f"{self.func.name}.{n.results[0].name}: {why}")
        self.why[id(n)] = why
        return False

    # statements

    def _statement(self, s: Stmt, indent: str) -> None:
        match s:
            case Node():
                self._node(s)
            case Call():
                convention.call(self, s, indent)
            case Loop():
                convention.loop(self, s, indent)

    def _node(self, n: Node) -> None:
        handler = LOWERINGS.get(n.op.name)
        before = len(self.lines)
        if handler is not None and handler(self, n):
            self.done.add(id(n))
            return
        del self.lines[before:]
        self._reference(n)

    def _reference(self, n: Node) -> None:
        """Run the body of an op in torch, on views of the buffers."""
        self.program.fallbacks[n.op.name] = self.program.fallbacks.get(n.op.name, 0) + 1
        args = [self.weight(a, "tensor") if self.is_weight(a) else self.ref(a) for a in n.args]
        for r in n.results:
            if not isinstance(r.type.elem, Cached):
                self.place(r)
        outs = [self.name_of(r) for r in n.results]
        attrs = [f"{k}={show_attr(v)}" for k, v in n.attrs.items()]
        given = ", ".join([f'"{n.op.name}"', f"[{', '.join(outs)}]", *args, *attrs])
        said = "; ".join(filter(None, [str(n.loc or ""), self.why.get(id(n), "")]))
        self.lines.append(f"{INDENT}reference({given})" + (f"  # {said}" if said else ""))


def _per_layer(p: Param | None) -> bool:
    return p is not None and bool(offsets(p.weight))


def _expr(p: Param | None) -> str:
    return "" if p is None or p.weight is None else show_weight(p.weight)
