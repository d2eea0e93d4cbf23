"""Lowering: a module becomes a ``Program`` of networks, and of ops between them that TensorRT cannot express.

Every node goes to the earliest network that its operands allow, so that there are as few networks as the ops
between them force. An op is left outside where it has no handler, or where its handler says why it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal

from irloom.backends.slots import length
from irloom.ir.elem import SEQS, Cached, Elem, Paged, State
from irloom.ir.errors import IRError, PipelineError
from irloom.ir.graph import Func, Module, Node, Param, Value, take_name
from irloom.ir.plan import is_linear
from irloom.passes.decompose import DECOMPOSED
from irloom.passes.inline import Inline
from irloom.passes.layers import Layer
from irloom.passes.layers import cut as cut_layers

from .context import LOWERINGS, Context, Pair
from .layers.elementwise import Cast
from .library import PLAIN, Kernels
from .network import NotExpressible, Tensor
from .open_network import OpenNetwork
from .program import STEP, Cache, Lowered, Outside, Part, Program, Segment, Source, step_arrays, symbol

Cut = Literal["whole", "layer"]


def lower(m: Module, cut: Cut = "whole", split: bool = True, kernels: Kernels = PLAIN) -> Program:
    """The program of a module whose pipeline has run.

    ``cut="layer"`` ends a network at the end of each layer, so that layers that are alike have networks that
    are alike. Without ``split`` an op that TensorRT cannot express is an error. ``kernels`` are
    those of the library that will build it (``Library.kernels``).
    """
    load_handlers()
    linear, m = is_linear(m), flat(m)
    run = _Lowering(m, linear, kernels)
    for nodes in groups(m, cut):
        run.group(nodes)
    if not split and run.outside:
        raise _refusal(m, [o for stage in run.outside.values() for o in stage])
    return run.program()


def load_handlers() -> None:
    """Import the files of this folder that hold handlers: those called ``lower_*``."""
    package = __name__.rpartition(".")[0]
    for found in iter_modules(import_module(package).__path__):
        if found.name.startswith("lower_"):
            import_module(f"{package}.{found.name}")


def flat(m: Module) -> Module:
    """The module inlined; its tokens are called ``ids``, and nothing else as an array of the step is."""
    m = m.copy()
    Inline().run(m)
    tokens = [p for p in m.main.data if isinstance(p.type.elem, Elem)][:1]
    taken = m.main.names() | set(STEP)
    for v in (*m.main.params, *(r for s in m.main.body for r in s.results)):
        if v in tokens:
            v.name = "ids"
        elif v.name in STEP:
            v.name = take_name(v.name, taken)
    return m


def groups(m: Module, cut: Cut) -> list[list[Node]]:
    """The nodes of a flat module, those of a layer together where it is to be cut at its layers."""
    if cut == "whole":
        return [m.main.nodes]
    return [p.nodes if isinstance(p, Layer) else p for p in cut_layers(m.main).parts]


def _refusal(m: Module, outside: Sequence[Outside]) -> PipelineError:
    first = outside[0]
    more = f" (and {len(outside) - 1} more)" if len(outside) > 1 else ""
    where = ", ".join(filter(None, [first.node.results[0].name, first.node.loc]))
    return PipelineError(
        f"{m.model or 'the program'}: TensorRT cannot express {first.node.op.name}{more}: {first.reason}",
        hint="without --no-split it runs between two segments of the engine",
    ).at(f"at {where}")


@dataclass
class _Lowering:
    """``stages`` are the networks in order, ``outside`` the ops that run behind each.

    ``made_in`` is the network that makes a value, or behind which its op runs; ``ready_at`` the first network
    that may read it.
    """

    m: Module
    linear: bool
    kernels: Kernels
    stages: list[OpenNetwork] = field(default_factory=list[OpenNetwork])
    outside: dict[int, list[Outside]] = field(default_factory=dict[int, "list[Outside]"])
    made_in: dict[Value, int] = field(default_factory=dict[Value, int])
    ready_at: dict[Value, int] = field(default_factory=dict[Value, int])
    nodes: list[Lowered] = field(default_factory=list[Lowered])
    start: int = 0

    def __post_init__(self) -> None:
        self.roots = roots(self.m.main)
        seqs = next((p.type.dims for p in self.m.main.data if p.type.elem == SEQS), None)
        self.arrays = step_arrays(*(seqs or (1, 1)))

    # where nodes go

    def group(self, nodes: Sequence[Node]) -> None:
        """Lower nodes to networks of their own, behind those of the groups before."""
        self.start = len(self.stages)
        for n in nodes:
            self.node(n)

    def node(self, n: Node) -> None:
        """Lower a node to the first network that may read its operands, or leave it outside."""
        at = max([self.start, *(self.ready_at.get(v, 0) for v in n.values)])
        try:
            self.lower(n, at)
        except NotExpressible as error:
            self.leave(n, max([self.start, *(self.made_in.get(v, 0) for v in n.values)]), error.message)

    def lower(self, n: Node, at: int) -> None:
        if n.op.name not in LOWERINGS:
            simpler = "; the pass decompose writes it in simpler ops" if n.op.name in DECOMPOSED else ""
            raise NotExpressible(f"TensorRT has no layer for {n.op.name}{simpler}")
        to = self.stage(at)
        mark = to.mark()
        try:
            made = LOWERINGS[n.op.name](Context(n, to))
            to.keep(n, [made] if isinstance(made, (Tensor, Pair)) else made)
        except NotExpressible:
            to.back(mark)
            raise
        kinds = tuple(type(p.layer).__name__ for p in to.network.layers[mark.layers :])
        self.nodes.append(Lowered(n, kinds, form="; ".join(to.notes[mark.notes :])))
        for v in n.results:
            self.made_in[v] = self.ready_at[v] = at

    def leave(self, n: Node, behind: int, reason: str) -> None:
        self.stage(behind)
        self.outside.setdefault(behind, []).append(Outside(n, reason))
        self.nodes.append(Lowered(n, reason=reason))
        for v in n.results:
            self.made_in[v], self.ready_at[v] = behind, behind + 1

    def stage(self, at: int) -> OpenNetwork:
        while len(self.stages) <= at:
            self.stages.append(OpenNetwork(self.m, self.arrays, self.roots, self.linear, self.kernels))
        return self.stages[at]

    # what comes of it

    def program(self) -> Program:
        """The parts in order, with what flows between them."""
        self.mark_outputs()
        parts: list[Part] = []
        sources: dict[str, Source] = {}
        for at, open_network in enumerate(self.stages):
            open_network.carry_symbols()
            if open_network.network.outputs:
                parts.append(Segment(open_network.network))
                sources |= open_network.sources
            parts += self.outside.get(at, [])
        logits = self.m.main.returns[0].name
        dims, caches, nodes = self.ranges(), self.caches(), tuple(self.nodes)
        return Program(self.m, self.linear, tuple(parts), dims, caches, sources, logits, nodes)

    def mark_outputs(self) -> None:
        """Let a value leave its network where another part reads it, or main returns it."""
        read = {v for stage in self.outside.values() for o in stage for v in o.node.values}
        read |= {v for s in self.stages for v in s.made if v not in s.own}
        for s in self.stages:
            for v in list(s.own):
                made, wanted = s.made[v], v in read or v in self.m.main.returns
                if wanted and isinstance(made, Tensor) and v not in self.roots:
                    s.network.output(v.name, self.left(s, v, made))

    def left(self, s: OpenNetwork, v: Value, made: Tensor) -> Tensor:
        """A tensor that may leave a network under a name of its own: no input, weight or other output."""
        net = s.network
        if made in (*net.inputs, *net.weights, *net.outputs.values()):
            return net.add(Cast(made, made.elem), f"{v.name}.cast")[0]
        return made

    def ranges(self) -> dict[str, tuple[int, int]]:
        """The range of every symbol: those of the module, then those of slots."""
        tokens, seqs = (symbol(self.arrays[name][0]) for name in ("ids", "last"))
        dims = {k: v for k, v in self.m.dims.items() if k in (tokens, seqs)}
        rows, slots = dims.get(str(tokens), (1, 1)), dims.get(str(seqs), (1, 1))
        paged = [p.type.elem for p in self.m.main.data if isinstance(p.type.elem, Paged)]
        own = [elem.page for elem in paged if elem.stride == 1]  # what networks take
        held = length(max(own or [elem.page for elem in paged], default=1), rows[1])
        return {**dims, "B": slots, "N": (1, rows[1]), "L": (held, held)}

    def caches(self) -> tuple[Cache, ...]:
        return tuple(_cache(p) for p in self.m.main.data if isinstance(p.type.elem, Cached))


def _cache(p: Param) -> Cache:
    dims = tuple(d for d in p.type.dims[1:] if isinstance(d, int))
    match p.type.elem:
        case Paged(elem=elem, values=values):
            return Cache(p.name, elem, dims, dims[1] if values is None else values)
        case State(elem=elem):
            return Cache(p.name, elem, dims, None)
        case _:
            raise IRError(f"`{p.name}` is {p.type}, no cache")


def roots(f: Func) -> dict[Value, Param]:
    """For every value that is a cache, the parameter whose memory it is."""
    found: dict[Value, Param] = {p: p for p in f.data if isinstance(p.type.elem, Cached)}
    for n in f.nodes:
        given = [found[v] for v in n.values if v in found]
        for v, root in zip([r for r in n.results if isinstance(r.type.elem, Cached)], given, strict=False):
            found[v] = root
    return found
