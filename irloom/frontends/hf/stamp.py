"""Put copies of layers that ran where layers that are alike left a marker.

After this the captured graph is what it would be had every layer run: its nodes bear the paths of their own
layer, and read its own weights.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

from irloom.frontends.hf.repeat import Layer, Repeats, Unlike, renumbered

ENTER, LEAVE, AGAIN = (f"irloom.layer_{what}.default" for what in ("enter", "leave", "again"))
WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)
LIFTED = re.compile(r"lifted_tensor_\d+$")
"""What export calls a tensor that a forward makes from numbers; it counts them."""


@dataclass(frozen=True)
class Whole:
    """A graph in which every layer ran, what its inputs are, and the values of its constants."""

    graph: Graph
    specs: list[InputSpec]
    constants: dict[str, Any]


def stamped(program: ExportedProgram, wrapper: nn.Module, repeats: Repeats | None) -> Whole:
    """``program`` with a copy of a layer in place of each marker.

    Raises ``Unlike`` where layers turn out to differ, or read what is not among their operands.
    """
    if repeats is None or not repeats.calls:
        return Whole(program.graph, program.graph_signature.input_specs, program.constants)
    return _Stamper(program, wrapper, repeats).run()


@dataclass(frozen=True)
class Region:
    """What a layer did: the nodes from ``enter`` to ``leave``, these two not included."""

    layer: Layer
    enter: FxNode
    nodes: list[FxNode]
    leave: FxNode

    def check(self) -> None:
        """``Unlike`` unless it reads only operands, inputs of the graph and sizes, and only results of it are
        read.
        """
        inside = {self.enter, *self.nodes, self.leave}
        for node in inside - {self.enter}:
            for read in node.all_input_nodes:
                if read not in inside and read.op != "placeholder" and not _is_size(read):
                    raise Unlike(f"{self.layer.path} reads `{read.name}`, which is no operand of it")
        for node in inside - {self.leave}:
            if any(user not in inside for user in node.users) and not _is_size(node):
                raise Unlike(f"`{node.name}` of {self.layer.path} is read behind its back")


def _regions(nodes: list[FxNode], repeats: Repeats) -> dict[int, Region]:
    """The run of each layer by the number of its call."""
    edges = ((i, n) for i, n in enumerate(nodes) if str(n.target) in (ENTER, LEAVE))
    at = {(str(n.target), _number(n)): i for i, n in edges}
    out: dict[int, Region] = {}
    for number, layer in enumerate(repeats.calls):
        start, end = at.get((ENTER, number)), at.get((LEAVE, number))
        if start is not None and end is not None:
            out[number] = Region(layer, nodes[start], nodes[start + 1 : end], nodes[end])
        elif number in repeats.marked.values():
            raise Unlike(f"nothing reads what {layer.path} gives")
    return out


class _Stamper:
    def __init__(self, program: ExportedProgram, wrapper: nn.Module, repeats: Repeats) -> None:
        self.old, self.repeats = list(program.graph.nodes), repeats
        self.regions = _regions(self.old, repeats)
        self.inputs = _Inputs(program, wrapper)
        self.env: dict[FxNode, Any] = {}

    def run(self) -> Whole:
        firsts = [self.regions[number] for number in dict.fromkeys(self.repeats.marked.values())]
        lasts = [region for region in self.regions.values() if region.layer.last]
        for first in firsts:
            first.check()
            for last in lasts:
                if last.layer.kind == first.layer.kind:
                    self.compare(first, last)
        for node in self.old:
            if node.op == "placeholder":
                self.inputs.keep(node, self.env)
            elif str(node.target) == AGAIN:
                self.again(node)
            else:
                self.put(node, self.env, lambda n: self.inputs.same(n, self.env))
        return Whole(self.inputs.graph, self.inputs.specs, self.inputs.constants)

    def compare(self, first: Region, last: Region) -> None:
        """The last layer of a kind is the copy that the first would give.

        Sizes are told by value: one that an earlier layer computed is not computed again.
        """
        ours, theirs = ([n for n in layer.nodes if not _is_size(n)] for layer in (first, last))
        other = dict(zip((first.enter, *ours), (last.enter, *theirs), strict=False))
        said, weight = self.inputs.said, self.inputs.weight

        def expected(node: FxNode) -> Any:
            return said(other.get(node) or weight(node, first.layer, last.layer))

        same = len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=False):
            wanted = map_arg(_arguments(a, first.layer, last.layer), expected)
            if not same or (a.target, wanted) != (b.target, map_arg((b.args, b.kwargs), said)):
                raise Unlike(f"{first.layer.path} and {last.layer.path} differ from `{a.name}` on")
        if list(map(expected, _listed(first.leave))) != list(map(said, _listed(last.leave))):
            raise Unlike(f"{first.layer.path} and {last.layer.path} differ in what they give")

    def again(self, marker: FxNode) -> None:
        """Copy the layer that ran for the one that left ``marker``."""
        number = _number(marker)
        layer, region = self.repeats.calls[number], self.regions[self.repeats.marked[number]]
        env: dict[FxNode, Any] = {region.enter: [self.env[x] for x in _listed(marker)]}

        def read(node: FxNode) -> Any:
            return env[node] if node in env else self.inputs.moved(node, region, layer, self.env)

        for node in region.nodes:
            self.put(node, env, read, (region.layer, layer))
        self.env[marker] = [read(x) for x in _listed(region.leave)]

    def put(
        self,
        node: FxNode,
        env: dict[FxNode, Any],
        read: Callable[[FxNode], Any],
        move: tuple[Layer, Layer] | None = None,
    ) -> None:
        """Copy a node; the edges of layers vanish."""
        if str(node.target) in (ENTER, LEAVE):
            env[node] = [read(x) for x in _listed(node)]
            return
        given: Any = map_arg(_arguments(node, *move) if move else (node.args, node.kwargs), read)
        args, kwargs = given
        if node.target is operator.getitem and isinstance(args[0], list):
            env[node] = args[0][args[1]]
            return
        env[node] = copy = self.inputs.graph.create_node(node.op, node.target, args, kwargs, node.name)
        copy.meta = {**node.meta, "nn_module_stack": _stack(node, *move)} if move else node.meta


class _Inputs:
    """The inputs of the whole graph: weights of every layer are among those captured, constants are not."""

    def __init__(self, program: ExportedProgram, wrapper: nn.Module) -> None:
        self.graph = Graph()
        self.old = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.specs: list[InputSpec] = []
        self.values, self.constants = program.constants, dict[str, Any]()
        self.made: dict[tuple[FxNode, str], FxNode] = {}
        self.placeholders: dict[str, FxNode] = {}
        paths: dict[int, list[str]] = defaultdict(list)
        held = (wrapper.named_parameters, wrapper.named_buffers)
        for path, x in (pair for named in held for pair in named(remove_duplicate=False)):
            paths[id(x)].append(path)
        self.aliases = {path: same for same in paths.values() for path in same}
        """All paths of a weight; export lets the last one stand for it."""
        for node in program.graph.find_nodes(op="placeholder"):
            if self.old[node.name].kind in WEIGHTS:
                self.placeholders[str(self.old[node.name].target)] = node
        self.first_user: FxNode | None = None

    def keep(self, node: FxNode, env: dict[FxNode, Any]) -> None:
        """An input of the captured graph; constants come later, as export counts them in order of use."""
        spec = self.old[node.name]
        if spec.kind is InputKind.CONSTANT_TENSOR:
            return
        env[node] = self.graph.node_copy(node)
        self.specs.append(spec)
        if spec.kind is InputKind.USER_INPUT and self.first_user is None:
            self.first_user = env[node]

    def same(self, node: FxNode, env: dict[FxNode, Any]) -> Any:
        """What stands for a node outside of layers that did not run."""
        return env[node] if node in env else self.constant(node, None)

    def moved(self, node: FxNode, region: Region, layer: Layer, env: dict[FxNode, Any]) -> Any:
        """What stands in a copy of ``region`` for a node from outside: a weight, a constant or a size."""
        if node.op == "placeholder" and self.old[node.name].kind is InputKind.CONSTANT_TENSOR:
            shared = not set(node.users) <= set(region.nodes)
            return self.same(node, env) if shared else self.constant(node, (region.layer, layer))
        return self.same(self.weight(node, region.layer, layer), env)

    def weight(self, node: FxNode, one: Layer, other: Layer) -> FxNode:
        """The input that is for ``other`` what ``node`` is for ``one``; itself when not of the layer."""
        target = str(self.old[node.name].target) if node.op == "placeholder" else ""
        for alias in self.aliases.get(target, ()):
            if alias.startswith(f"{one.path}."):
                return self.placeholders[self.aliases[other.path + alias[len(one.path) :]][-1]]
        return node

    def constant(self, node: FxNode, move: tuple[Layer, Layer] | None) -> FxNode:
        """The input for a constant, made when it is first used."""
        spec = self.old[node.name]
        path = str(spec.target)
        if move and path.startswith(f"{move[0].path}."):
            path = move[1].path + path[len(move[0].path) :]
        if (node, path) not in self.made:
            name = path
            if LIFTED.search(path):
                name = LIFTED.sub(f"lifted_tensor_{self.lifted()}", path)
            assert self.first_user is not None
            with self.graph.inserting_before(self.first_user):
                made = self.graph.create_node("placeholder", re.sub(r"\W", "_", f"c_{name}"))
            made.meta = node.meta
            self.made[node, path] = made
            self.constants[name] = self.values[str(spec.target)]
            self.specs.append(replace(spec, arg=TensorArgument(made.name), target=name))
        return self.made[node, path]

    def lifted(self) -> int:
        return sum(LIFTED.search(name) is not None for name in self.constants)

    def said(self, node: FxNode) -> Any:
        """A node as what two layers have in common where they do the same: sizes and constants by value."""
        if _is_size(node):
            return ("size", str(node.meta["val"]))
        if node.op == "placeholder" and (spec := self.old[node.name]).kind is InputKind.CONSTANT_TENSOR:
            value: Any = self.values[str(spec.target)]
            return ("constant", value.dtype, value.shape, value.is_meta or repr(value.tolist()))
        return node


def _arguments(node: FxNode, one: Layer, other: Layer) -> tuple[Any, Any]:
    """The arguments of a node of ``one`` in ``other``: where an op of ours is told a layer, its number."""
    if not str(node.target).startswith("irloom."):
        return node.args, node.kwargs
    to: dict[Any, Any] = dict(renumbered(one, other) or {})
    target: Any = node.target
    named = zip(target._schema.arguments, node.args, strict=False)
    return tuple(to.get(a, a) if arg.name == "layer" else a for arg, a in named), node.kwargs


def _listed(edge: FxNode) -> list[FxNode]:
    """The tensors that an edge of a layer or a marker is given."""
    given: Any = edge.args[0]
    return list(given)


def _number(edge: FxNode) -> int:
    """The number of the call that an edge of a layer or a marker is for."""
    given: Any = edge.args[-1]
    return given


def _stack(node: FxNode, one: Layer, other: Layer) -> dict[str, Any]:
    """The modules that a node was computed in, were it one of ``other``."""
    stack: dict[str, Any] = dict(node.meta.get("nn_module_stack") or {})
    for key, (path, cls) in stack.items():
        if f"{path}.".startswith(f"{one.path}."):
            stack[key] = (other.path + path[len(one.path) :], cls)
    return stack


def _is_size(node: FxNode) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int)
