"""A network that is being lowered to: which tensor stands for each value, and what comes from outside."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from irloom.backends.slots import length
from irloom.ir.dims import Dim, symbols
from irloom.ir.elem import SEQS, Elem, Paged, State
from irloom.ir.graph import Module, Node, Param, Value

from .context import M, Made, Pair
from .forms import inline
from .layers.fill import Constant
from .library import PLAIN, Kernels
from .network import Layer, Network, NotExpressible, Tensor, size_of
from .program import I32, B, Source, symbol


@dataclass
class OpenNetwork:
    """The network of one segment. ``arrays`` are the dims of the step's arrays, ``roots`` says which cache a
    cache value is of, and keys and values lie in slots where it is ``linear``. ``shared`` is what nodes have
    made for all of them, ``notes`` what they say of their forms.
    """

    module: Module
    arrays: Mapping[str, tuple[Dim, ...]]
    roots: Mapping[Value, Param]
    linear: bool
    kernels: Kernels = PLAIN
    network: Network = field(default_factory=Network)
    made: dict[Value, Made] = field(default_factory=dict[Value, Made])
    given: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    sources: dict[str, Source] = field(default_factory=dict[str, Source])
    own: dict[Value, None] = field(default_factory=dict[Value, None])
    shared: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])
    notes: list[str] = field(default_factory=list[str])

    # what is taken from outside

    def get(self, v: Value) -> Made:
        """What stands for a value that is no weight; an input where another part made it, or nobody."""
        if v not in self.made:
            self.made[v] = self._outer(v)
        return self.made[v]

    def _outer(self, v: Value) -> Made:
        match v.type.elem:
            case Paged() if not self.linear:
                raise NotExpressible("keys and values lie in pages, and layers take slots")
            case Paged(stride=stride) if stride > 1:
                raise NotExpressible(f"of every {stride} tokens one has a key, and layers keep them all")
            case Paged(elem=elem, page=page) as kept:
                _, heads, dim = v.type.dims
                name, held = self.roots[v].name, length(page, self.most(self.arrays["ids"][0]))
                k = self.input(f"{name}.k", elem, (B, heads, held, dim))
                values = dim if kept.values is None else kept.values
                return Pair(
                    name, k, self.input(f"{name}.v", elem, (B, heads, held, values)) if values else None
                )
            case State(elem=elem):
                return self.input(self.roots[v].name, elem, (B, *v.type.dims[1:]))
            case Elem() as elem:
                return self.input(v.name, elem, v.type.dims)
            case _:
                said = "seqs is no tensor: take arrays of the step" if v.type.elem == SEQS else str(v.type)
                raise NotExpressible(f"operand `{v.name}`: {said}")

    def input(self, name: str, elem: Elem, dims: Sequence[Dim]) -> Tensor:
        """An input of the network, declared the first time."""
        if name not in self.given:
            self.given[name] = self.network.input(name, elem, dims)
        return self.given[name]

    def step(self, name: str) -> Tensor:
        """An array of the step."""
        return self.input(name, I32, self.arrays[name])

    def weight(self, p: Param, form: str, elem: Elem | None, dims: Sequence[int] | None) -> Tensor:
        """A weight by the parameter's name, and its form; a constant of the module as a layer."""
        name = f"{p.name}.{form}" if form else p.name
        if name in self.given:
            return self.given[name]
        value = None if form else inline(p, self.module)
        if value is not None:
            constant = Constant(p.type.plain, tuple(value.shape), tuple(value.flatten().tolist()))
            (self.given[name],) = self.network.add(constant, name)
            return self.given[name]
        sizes = [d for d in (p.type.dims if dims is None else dims) if isinstance(d, int)]
        self.sources[name] = Source(p, form)
        self.given[name] = self.network.weight(name, elem or p.type.plain, sizes)
        return self.given[name]

    def most(self, d: Dim) -> int:
        """The largest that a dim of the module can be."""
        return size_of(d, {name: high for name, (_, high) in self.module.dims.items()})

    def once(self, key: Hashable, make: Callable[[], M]) -> M:
        """See ``Context.once``."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    # layers

    def add(self, node: Node, layer: Layer) -> tuple[Tensor, ...]:
        """Append a layer, named after the first result of the node that it is for."""
        what = getattr(layer, "op", type(layer).__name__.lower())
        return self.network.add(layer, f"{node.results[0].name}.{what}")

    def keep(self, node: Node, made: Sequence[Made]) -> None:
        """What a handler made of a node stands for its results; a renewed cache leaves in its own memory."""
        for v, t in zip(node.results, made, strict=True):
            if isinstance(t, Pair):
                for tail, x in (("k", t.k), ("v", t.v)):
                    if x is not None:
                        self.network.output(f"{t.name}.{tail}", x, f"{t.name}.{tail}")
            elif isinstance(v.type.elem, State):
                name = self.roots[v].name
                self.network.output(name, t, name)
            else:
                assert (t.elem, t.dims) == (v.type.elem, v.type.dims), f"{t} for {v}"
            self.made[v] = t
            self.own[v] = None

    def carry_symbols(self) -> None:
        """Take an array of the step for each symbol that a layer needs and no other input tells."""
        told = {symbol(d) for t in self.network.inputs for d in t.dims}
        made = {s for p in self.network.layers for t in p.outputs for d in t.dims for s in symbols(d)}
        for name, dims in self.arrays.items():
            if symbol(dims[-1]) in made - told:
                self.step(name)
                told |= {symbol(d) for d in dims}

    def mark(self) -> Mark:
        """How far it has come, to go back to."""
        n = self.network
        counts = len(n.inputs), len(n.weights), len(n.layers), len(self.notes)
        return Mark(*counts, dict(self.given), dict(self.made), dict(self.shared))

    def back(self, to: Mark) -> None:
        """Take back what was added since."""
        n = self.network
        del n.inputs[to.inputs :], n.weights[to.weights :], n.layers[to.layers :]
        self.given, self.made, self.shared = to.given, to.made, to.shared
        del self.notes[to.notes :]
        self.sources = {name: s for name, s in self.sources.items() if name in self.given}
        named = [t.name for t in (*n.inputs, *n.weights)]
        named += [x for p in n.layers for x in (p.name, *(t.name for t in p.outputs))]
        n.taken = set(named)


@dataclass(frozen=True)
class Mark:
    """How many inputs, weights, layers and notes a network had; what stood for what."""

    inputs: int
    weights: int
    layers: int
    notes: int
    given: dict[str, Tensor]
    made: dict[Value, Made]
    shared: dict[Hashable, Any]
