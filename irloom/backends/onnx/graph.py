"""An ONNX graph while it is written, as plain data: nodes, what they take in, constants, weights by name.

Values are known by their names. ``g("Mul", a, b)`` appends a node and gives the name of what it makes; nodes
are called by the module that they come from, ``model/layers.3/self_attn/q_proj/Gemm``, which is how viewers
group them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from irloom.ir.dims import Dim, Sym
from irloom.ir.elem import ELEMS, Elem
from irloom.ir.graph import take_name
from irloom.ir.types import Type

from .weights import Stored

I64, F32, BOOL = ELEMS["i64"], ELEMS["f32"], ELEMS["bool"]

Number = int | float | bool
STEP = "step"
"""What the values and nodes are called after that belong to no module."""


@dataclass
class OnnxNode:
    """One application of an ONNX operator; an absent input is an empty name."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any]
    name: str
    domain: str = ""

    @property
    def shared(self) -> bool:
        """Whether it was written ``once`` for all that ask for it."""
        return self.outputs[0].startswith(f"{STEP}.")


@dataclass(frozen=True)
class Constant:
    """Small values that are kept in the graph itself."""

    name: str
    elem: Elem
    dims: tuple[int, ...]
    values: tuple[Number, ...]


@dataclass(frozen=True)
class Scope:
    """Whose nodes are being written: a module path with slashes, and what its values are called after."""

    path: str = ""
    base: str = ""


@dataclass
class Graph:
    """``inputs`` and ``outputs`` have types; ``types`` has those of other values, as far as they are known.

    ``sizes`` are the symbols that the inputs' dims have; ``steps`` maps a name of something given at every
    step to its type, and it becomes an input when it is asked for.
    """

    steps: Mapping[str, Type] = field(default_factory=dict[str, Type])
    taken: set[str] = field(default_factory=set[str])
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    inputs: dict[str, Type] = field(default_factory=dict[str, Type])
    outputs: dict[str, Type] = field(default_factory=dict[str, Type])
    types: dict[str, Type] = field(default_factory=dict[str, Type])
    constants: dict[str, Constant] = field(default_factory=dict[str, Constant])
    weights: dict[str, Stored] = field(default_factory=dict[str, Stored])
    scope: Scope = Scope()
    outer: Graph | None = None
    _once: dict[Any, Any] = field(default_factory=dict[Any, Any])
    _node_names: set[str] = field(default_factory=set[str])

    def __call__(self, op: str, *inputs: str | None, domain: str = "", **attrs: Any) -> str:
        """Append ``op(*inputs)``; the name of its one result."""
        return self.several(op, *inputs, outputs=1, domain=domain, **attrs)[0]

    def several(
        self, op: str, *inputs: str | None, outputs: int, domain: str = "", **attrs: Any
    ) -> tuple[str, ...]:
        """Append ``op(*inputs)``; the names of its results."""
        base = f"{self.scope.base or STEP}.{op}"
        made = [take_name(base, self.taken) for _ in range(outputs)]
        name = take_name(f"{self.scope.path or STEP}/{op}", self._node_names)
        given = [x or "" for x in inputs]
        while given and not given[-1]:
            given.pop()
        self.nodes.append(OnnxNode(op, given, made, attrs, name, domain))
        return tuple(made)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` writes, the first time it is asked for; nodes that are shared belong to no module."""
        if key not in self._once:
            scope, self.scope = self.scope, Scope()
            self._once[key] = make()
            self.scope = scope
        return self._once[key]

    def inner(self) -> Graph:
        """A graph for the body of a loop: it may read what this one has made, and shares its weights."""
        return Graph({}, self.taken, scope=self.scope, outer=self)

    # what comes in

    def given(self, name: str) -> str:
        """Something given at every step: an input of the graph from now on."""
        if self.outer is not None:
            return self.outer.given(name)
        if name not in self.inputs:
            self.inputs[name] = self.steps[name]
            self.taken.add(name)
        return name

    def local(self, base: str, t: Type) -> str:
        """An input of the body of a loop, called after ``base``."""
        return self.input(take_name(base, set(self.taken)), t)

    def input(self, name: str, t: Type) -> str:
        """An input of the graph under a name of its own."""
        assert name not in self.taken, f"two values {name}"
        self.taken.add(name)
        self.inputs[name] = t
        return name

    def weight(self, w: Stored) -> str:
        """Values that the file of weights holds; asked for again, they are the same ones."""
        if self.outer is not None:
            return self.outer.weight(w)

        def make() -> str:
            name = take_name(w.name, self.taken)
            self.weights[name] = w.named(name)
            return name

        return self.once(("weight", w.named("")), make)

    def constant(
        self, values: Number | Sequence[Number], elem: Elem, dims: Sequence[int] | None = None
    ) -> str:
        """A constant; equal ones are one. A number has no dims, a sequence by default one."""
        many = tuple(values) if isinstance(values, Sequence) else (values,)
        shape = tuple(dims) if dims is not None else ((len(many),) if isinstance(values, Sequence) else ())
        key = (elem, shape, tuple(map(repr, many)))

        def make() -> str:
            short = "_".join(map(str, many)) if len(many) <= 4 else "values"
            name = take_name(f"const.{elem}.{short}", self.taken)
            self.constants[name] = Constant(name, elem, shape, many)
            return name

        return self.once(key, make)

    def ints(self, *values: int) -> str:
        """A list of integers, i64."""
        return self.constant(values, I64)

    # sizes

    def size(self, dim: Dim) -> str:
        """A dim as a list of one integer, i64[1]: read off the shape of an input that has it."""
        if isinstance(dim, int):
            return self.ints(dim)
        if self.outer is not None:
            return self.outer.size(dim)
        return self.once(("size", dim), lambda: self._size(dim))

    def _size(self, dim: Sym) -> str:
        total: str | None = None
        for names, factor in dim.terms:
            term: str | None = None if factor != 1 or not names else self._symbol(names[0])
            rest = names[1:] if term else names
            term = term or self.ints(factor)
            for name in rest:
                term = self("Mul", term, self._symbol(name))
            total = term if total is None else self("Add", total, term)
        assert total is not None
        return total

    def _symbol(self, name: str) -> str:
        def make() -> str:
            of, at = self.symbol_place(name)
            return self("Shape", self.given(of) if of in self.steps else of, start=at, end=at + 1)

        return self.once(("symbol", name), make)

    def symbol_place(self, name: str) -> tuple[str, int]:
        """An input that has a dim which is this symbol, and which of its dims that is."""
        for among in (self.inputs, self.steps):
            for given, t in among.items():
                for at, d in enumerate(t.dims):
                    if str(d) == name:
                        return given, at
        raise AssertionError(f"no input has a dim {name}")

    def shape(self, dims: Sequence[Dim]) -> str:
        """Dims as a list of integers, i64[n]."""
        if all(isinstance(d, int) for d in dims):
            return self.ints(*(d for d in dims if isinstance(d, int)))
        return self("Concat", *map(self.size, dims), axis=0)

    # what handlers write often

    def reshape(self, x: str, dims: Sequence[Dim]) -> str:
        """``x`` with other dims."""
        if sum(not isinstance(d, int) for d in dims) <= 1:
            return self("Reshape", x, self.ints(*(d if isinstance(d, int) else -1 for d in dims)))
        return self("Reshape", x, self.shape(dims))

    def cast(self, x: str, old: Elem, new: Elem) -> str:
        """``x`` in another element, where it is not in that already."""
        return x if old == new else self("Cast", x, to=new)

    def scalar(self, x: str) -> str:
        """A list of one as a tensor without dims."""
        return self("Squeeze", x, self.ints(0))

    def transpose(self, x: str, *order: int) -> str:
        """Dims in another order."""
        return self("Transpose", x, perm=list(order))

    def rename(self, made: str, name: str, since: int) -> None:
        """Let a value that a node from ``since`` on makes be called ``name``."""
        for node in self.nodes[since:]:
            node.inputs = [name if x == made else x for x in node.inputs]
            node.outputs = [name if x == made else x for x in node.outputs]
