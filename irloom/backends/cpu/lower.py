"""Lowering: a module becomes a Python program of kernel calls on preallocated buffers.

The program is text that a person can read and Python can run: one function per function of the module, whose
parameters say where each value lives and whose statements call kernels. An op without a kernel runs its reference body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from irloom.backends.cpu.place import Place, by_rows
from irloom.ir.buffers import storage
from irloom.ir.dims import Dim
from irloom.ir.elem import CACHES, ELEMS, SEQS, Elem, Paged
from irloom.ir.errors import IRError, IrloomError
from irloom.ir.graph import Arg, Call, Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.show import show_attr, show_weight
from irloom.ir.weight_expr import WeightExpr

INDENT = "    "


@dataclass(frozen=True)
class Bound:
    """A weight in the form that kernels want it: ``packed`` for products, ``vector`` for rows, ``tensor`` for bodies.

    ``layers`` are the indices it is bound for, None when all layers share it; ``bias`` goes with a packed weight.
    """

    name: str
    form: str
    param: Param
    layers: tuple[int, ...] | None
    bias: Param | None = None


@dataclass
class Program:
    """A lowered module: its text, what it binds, and what fell back to reference bodies."""

    text: str = ""
    weights: dict[str, Bound] = field(default_factory=dict[str, Bound])
    buffers: dict[str, tuple[Elem, Dim]] = field(default_factory=dict[str, tuple[Elem, Dim]])
    kernels: dict[str, str] = field(default_factory=dict[str, str])
    fallbacks: dict[str, int] = field(default_factory=dict[str, int])
    caches: list[str] = field(default_factory=list[str])


Handler = Callable[["Lowering", Node], bool]
LOWERINGS: dict[str, Handler] = {}


def lowers(op: str) -> Callable[[Handler], Handler]:
    """Register how an op becomes kernel calls; a handler returns False to leave the node to the reference body."""

    def wrap(fn: Handler) -> Handler:
        if op in LOWERINGS:
            raise IRError(f"cpu: two lowerings of {op}")
        LOWERINGS[op] = fn
        return fn

    return wrap


def lower(m: Module) -> Program:
    """The program of a module whose pipeline has run."""
    from irloom.backends.cpu import elementwise, kernel_calls

    assert kernel_calls and elementwise, "imported for their lowerings"
    program, shared = Program(), Shared(m)
    texts = [Lowering(program, shared, f).text() for f in m.funcs.values()]
    tables = [f"{name} = {made}" for name, made in shared.tables.items()]
    program.text = "\n\n\n".join(["\n".join([f"# {m.model} for cpu", *shared.declared(program), *tables]), *texts]) + "\n"
    return program


@dataclass
class Shared:
    """What the functions of one module have in common: where arguments go, rotary tables, the layers of each function."""

    m: Module
    tables: dict[str, str] = field(default_factory=dict[str, str])
    table_names: dict[str, str] = field(default_factory=dict[str, str])

    def layers(self, func: str) -> tuple[int, ...] | None:
        """The layer indices a function is called with; None for one without."""
        at = [layer for c, layer, _ in self.m.calls() if c.callee == func]
        return tuple(i for i in at if i is not None) or None

    def is_positions(self, func: Func, v: Value) -> bool:
        """Whether a value is the tokens' positions: made by the op, or given as such by every caller."""
        made = next((n for n in func.nodes if v in n.results), None)
        if made is not None:
            return made.op.name == "positions"
        if func.name == "main" or v not in func.data:
            return False
        main, at = self.m.main, [p.name for p in func.data].index(v.name)
        given = [c.args[at] for c, _, _ in self.m.calls() if c.callee == func.name]
        return all(self.is_positions(main, a) for a in given)

    def declared(self, program: Program) -> list[str]:
        """The lines that name the buffers."""
        return [f'{name} = buffer("{elem}", {size})' for name, (elem, size) in program.buffers.items()]

    def rope_table(self, text: str) -> str:
        """The name of a table of cosines and sines, made once per step."""
        if text not in self.table_names:
            self.table_names[text] = f"turns{len(self.table_names)}"
            self.tables[self.table_names[text]] = text
        return self.table_names[text]


class Lowering:
    """Lowers one function. ``places`` says where each value lives, ``given`` what the program's parameters are."""

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
        self.layers = shared.layers(func.name)

    # the shape of the text

    def text(self) -> str:
        """The function as Python."""
        self._parameters()
        self._results_in_place()
        for s in self.func.body:
            if id(s) not in self.done:
                self._statement(s, INDENT)
        self._returns()
        index = ["i"] if self.layers else []
        caches = [p.name for p in self.func.data if isinstance(p.type.elem, Paged)] if self.func.name != "main" else []
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
        if isinstance(v.type.elem, Paged):
            return self._root_cache(v)
        if v.type.elem in (SEQS, CACHES):
            return v.name
        place = self.places[v]
        if place not in self.named:
            name = v.name
            while name in self.given:
                name += "_"
            self.named[place] = name
            self.given[name] = place.text()
        return self.named[place]

    def _root_cache(self, v: Value) -> str:
        made = self.producers.get(v)
        while isinstance(made, Node):
            v = made.values[0]
            made = self.producers.get(v)
        return v.name

    # places

    def place(self, v: Value) -> Place:
        """Where ``v`` lives, in a buffer of the memory plan, or in one of its own when the plan leaves it out."""
        if v not in self.places:
            planned = v.buffer if self.storage.get(v, v) is v else None  # what could not be a view is a copy
            self.places[v] = self.own(planned or f"{self.func.name}_{v.name}", v)
        return self.places[v]

    def place_early(self, v: Value, at: Node) -> Place:
        """Where ``v`` lives when it is written already at ``at``: not in memory that is read until it was due."""
        if v in self.places:
            return self.places[v]
        start, due = self.order[id(at)], self.order[id(self.producers[v])]
        read = {x for s in self.func.body[start : due + 1] for x in s.values if x in self.places}
        if v.buffer and any(self.places[x].buffer == v.buffer for x in read):
            self.places[v] = self.own(f"{self.func.name}_{v.name}", Value(v.name, v.type))
        return self.place(v)

    def own(self, name: str, v: Value) -> Place:
        """Put ``v`` at the start of a buffer, which is made, or made larger, when needed."""
        self.program.buffers[name] = (v.type.plain, self.shared.m.buffers.get(name, v.type.nbytes))
        return Place.of(name, v)

    def alias(self, v: Value, place: Place | None) -> bool:
        """See ``v`` inside memory that another value owns, where nothing overwrites that while ``v`` is read."""
        if place is None or not self._stays(v, place.buffer):
            return False
        self.places[v] = place
        return True

    def _stays(self, v: Value, buffer: str) -> bool:
        made = self.order[id(self.producers[v])]
        last = self._last_read(v)
        writes = (r for s in self.func.body[made + 1 : last] for r in s.results)
        return not any(r.buffer == buffer and self.storage.get(r, r) is r for r in writes)

    def _last_read(self, v: Value) -> int:
        if v in self.func.returns:
            return len(self.func.body)
        last = 0
        for s in self.readers.get(v, []):
            last = max(last, self.order[id(s)])
            for r in s.results:
                if isinstance(s, Node) and s.op.name in ("reshape", "split", "slice"):
                    last = max(last, self._last_read(r))
        return last

    # weights

    def weight(self, a: Arg, form: str, bias: Param | None = None) -> str:
        """A weight in a form, as the text names it; ``None`` where it is absent."""
        if a is None:
            return "None"
        assert isinstance(a, Param) and a.weight is not None
        layers = self.layers if _per_layer(a.weight) else None
        owner = self.func.name if layers else "shared"
        key = f"{owner}.{a.name}.{form}" if layers else f"{show_weight(a.weight)} as {form}"
        bound = self.program.weights.get(key)
        if bound is None:
            name = f"{self.func.name}.{a.name}" if form == "packed" else f"{self.func.name}.{a.name}.{form}"
            bound = self.program.weights[key] = Bound(name, form, a, layers, bias)
        elif bias is not None and bound.bias is not bias:
            raise IrloomError(f"cpu: weight {a.name} is used with two biases", hint="give each use a weight of its own")
        local = a.name if form == "packed" else f"{a.name}_{form}"
        self.given.setdefault(local, f'{form}("{bound.name}")')
        return f"{local}[i]" if layers else local

    def table_weight(self, p: Param) -> str | None:
        """A vector that is the same for all layers, for use outside of functions."""
        assert p.weight is not None
        if _per_layer(p.weight):
            return None
        self.weight(p, "vector")
        del self.given[f"{p.name}_vector"]
        return f'vector("{self.program.weights[f"{show_weight(p.weight)} as vector"].name}")'

    def is_weight(self, a: Arg) -> bool:
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

    # statements

    def _parameters(self) -> None:
        main = self.func.name == "main"
        for k, p in enumerate(p for p in self.func.data if isinstance(p.type.elem, Elem)):
            if main:
                self.places[p] = Place("tokens", p.type.plain, p.type.dims, 1)
            elif self.shared.is_positions(self.func, p):
                self.places[p] = Place("positions", p.type.plain, p.type.dims, 1)
            else:
                self.places[p] = self.own(argument(k, p), p)

    def _results_in_place(self) -> None:
        """Let a result be made where callers look for it, when the argument that is there has been read by then."""
        if self.func.name == "main":
            return
        held = {self.places[p].buffer: p for p in self.func.data if p in self.places}
        for r, to in zip(self.func.returns, results_of(self.shared.m, self.func), strict=True):
            made = self.producers.get(r)
            if to is None or not isinstance(made, Node) or self.func.returns.count(r) > 1:
                continue
            inputs = [self.order[id(p)] for v in made.values if isinstance(p := self.producers.get(v), Node)]
            written = min([self.order[id(made)], *(i for i in inputs if self._starts_early(i))])
            if to.buffer not in held or self._last_read(held[to.buffer]) < written:
                self.own(to.buffer, r)
                self.places[r] = to

    def _starts_early(self, at: int) -> bool:
        """Whether a statement's kernel may also do the statement that reads it."""
        s = self.func.body[at]
        return isinstance(s, Node) and s.op.name in ("linear", "rms_norm", "embedding")

    def _statement(self, s: Stmt, indent: str) -> None:
        match s:
            case Node():
                self._node(s)
            case Call():
                self._call(s, indent)
            case Loop():
                self._loop(s, indent)

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
            self.place(r)
        outs = [self.name_of(r) for r in n.results]
        attrs = [f"{k}={show_attr(v)}" for k, v in n.attrs.items()]
        given = ", ".join([f'"{n.op.name}"', f"[{', '.join(outs)}]", *args, *attrs])
        self.lines.append(f"{INDENT}reference({given})" + (f"  # {n.loc}" if n.loc else ""))

    def _call(self, c: Call, indent: str) -> None:
        callee = self.shared.m.funcs[c.callee]
        for a, to in self._moves(c):
            self._move(a, to, indent)
        index = [str(c.index)] if self.shared.layers(c.callee) else []
        inner = [self._root_cache(a) for a in c.args if isinstance(a.type.elem, Paged)]
        self.lines.append(f"{indent}{c.callee}({', '.join([*index, *inner, *(str(x) for x in c.slots)])})")
        for r, place in zip(c.results, results_of(self.shared.m, callee), strict=True):
            if place is not None:
                self.places[r] = place
                self.holds[place.buffer] = r

    def _moves(self, c: Call) -> list[tuple[Value, Place]]:
        """Which arguments of a call go where."""
        callee = self.shared.m.funcs[c.callee]
        data = [p for p in callee.data if isinstance(p.type.elem, Elem)]
        given = [a for a in c.args if isinstance(a.type.elem, Elem)]
        rows = enumerate(zip(data, given, strict=True))
        return [(a, Place.of(argument(k, p), p)) for k, (p, a) in rows if not self.shared.is_positions(callee, p)]

    def _move(self, a: Value, to: Place, indent: str) -> None:
        """Bring an argument to where its callee reads it, unless it is there."""
        if self.places[a] == to or self.holds.get(to.buffer) is a:
            return
        self.own(to.buffer, a)
        self.lines.append(f"{indent}copy({self.name_of(a)}, {self._named(to)})")
        self.holds[to.buffer] = a

    def _named(self, place: Place) -> str:
        if place not in self.named:
            self.named[place] = f"to_{place.buffer}"
            self.given[self.named[place]] = place.text()
        return self.named[place]

    def _loop(self, s: Loop, indent: str) -> None:
        calls = [c for c in s.body if isinstance(c, Call)]
        for c in calls:  # what every pass reads alike is brought there once
            for a, to in self._moves(c):
                if a in self.places:
                    self._move(a, to, indent)
        for p, init, y in zip(s.params, s.inits, s.yields, strict=True):
            self.places[p] = self._result_place(calls, y)
            self._move(init, self.places[p], indent)
            self.holds[self.places[p].buffer] = p
        self.lines.append(f"{indent}for {s.var} in range({s.start}, {s.stop}, {s.step}):")
        for inner in s.body:
            self._statement(inner, indent + INDENT)
        for r, y in zip(s.results, s.yields, strict=True):
            self.places[r] = self.places[y]

    def _result_place(self, calls: list[Call], y: Value) -> Place:
        for c in calls:
            places = results_of(self.shared.m, self.shared.m.funcs[c.callee])
            for r, place in zip(c.results, places, strict=True):
                if r is y and place is not None:
                    return place
        raise IrloomError(f"cpu: a loop carries {y.name} on, which no call in it makes", hint="run without `outline`")

    def _returns(self) -> None:
        """Leave results where callers look for them."""
        if self.func.name == "main":
            for r in self.func.returns:
                if isinstance(r.type.elem, Elem):
                    self.lines.append(f"{INDENT}return {self.name_of(r)}")
            return
        moved = [(r, to) for r, to in zip(self.func.returns, results_of(self.shared.m, self.func), strict=True) if to is not None]
        for r, to in moved:
            if self.places[r] != to:
                self.own(to.buffer, r)
                self._named(to)
                self.call("copy", r, to)


F32 = ELEMS["f32"]


def argument(k: int, p: Value) -> str:
    """The buffer of the ``k``-th tensor argument; functions whose arguments have one type share it."""
    dims = "_".join(str(d) for d in p.type.dims)
    return f"arg{k}_{p.type.elem}_{dims}"


def results_of(m: Module, f: Func) -> list[Place | None]:
    """Where a function leaves its results: where an argument of that type was, in order, else in buffers of their own."""
    free = [(p, argument(k, p)) for k, p in enumerate(p for p in f.data if isinstance(p.type.elem, Elem))]
    out: list[Place | None] = []
    for k, r in enumerate(f.returns):
        if not isinstance(r.type.elem, Elem):
            out.append(None)
            continue
        match = next((x for x in free if x[0].type == r.type), None)
        if match:
            free.remove(match)
        out.append(Place.of(match[1] if match else f"result{k}_{f.name}", r))
    return out


def _per_layer(expr: WeightExpr) -> bool:
    return "{i}" in show_weight(expr)
