"""A network as TensorRT would build it, as plain data: layers in order, each with its documented rules.

A layer is a frozen dataclass, and everything about it is in that one class: which inputs TensorRT accepts and
what comes out (``infer``), what that is in torch (``run``), and the call that adds it to a network definition
(``emit``). So one ``Network`` is printed, hashed, run without the library and built with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from irloom.ir.dims import Dim, Sym, symbols
from irloom.ir.elem import Elem
from irloom.ir.errors import IrloomError
from irloom.ir.graph import take_name
from irloom.ir.types import Type

if TYPE_CHECKING:
    import torch

    from .emitter import Emitter


class Sizes(dict[str, int]):
    """What each symbol is in one step, and the device that it runs on."""

    device: torch.device | None = None


class NotExpressible(IrloomError):
    """TensorRT has no such layer, or its layer does not take these inputs. ``hint`` is the rule's source."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value in a network. Dims are integers, or polynomials over the symbols of the program."""

    name: str
    elem: Elem
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {Type(self.elem, self.dims)}"


Inferred = tuple[Elem, tuple[Dim, ...]]


class Layer:
    """What a network is made of; a leaf is a frozen dataclass whose ``Tensor`` fields are its inputs.

    ``source`` names the page of TensorRT's documentation that its rules come from. ``renews`` is the field
    whose memory its output takes, where there is one.
    """

    source: ClassVar[str]
    renews: ClassVar[str | None] = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Its inputs, in the order of the fields; absent ones are left out."""
        return tuple(_tensors(getattr(self, f.name) for f in fields(self)))  # type: ignore[arg-type]

    def infer(self) -> tuple[Inferred, ...]:
        """Element and dims of each output; ``NotExpressible`` names the rule that is broken."""
        raise NotImplementedError

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        """What it computes: ``value(tensor)`` is the value of an input."""
        raise NotImplementedError

    def emit(self, to: Emitter) -> Sequence[Any]:
        """Add it to a network definition; its outputs there."""
        raise NotImplementedError

    def refuse(self, reason: str) -> NotExpressible:
        """The error that says which rule of this layer is broken."""
        return NotExpressible(f"{type(self).__name__}: {reason}", hint=f"see {self.source}")


Value = Callable[[Tensor], "torch.Tensor"]


def _tensors(found: Iterator[Any]) -> Iterator[Tensor]:
    for x in found:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from (t for t in x if isinstance(t, Tensor))


@dataclass(frozen=True)
class Placed:
    """A layer in a network, under a name, with its outputs."""

    name: str
    layer: Layer
    outputs: tuple[Tensor, ...]


@dataclass
class Network:
    """Layers in order, from ``inputs`` and ``weights`` to ``outputs``.

    A weight is a constant whose values come later, by name: a plan without weights is refitted with them.
    ``outputs`` maps the name that a result leaves under to the tensor. An output may be the cache of an
    input, renewed in place: ``aliases`` maps its name to that of the input.
    """

    inputs: list[Tensor] = field(default_factory=list[Tensor])
    weights: list[Tensor] = field(default_factory=list[Tensor])
    layers: list[Placed] = field(default_factory=list[Placed])
    outputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    taken: set[str] = field(default_factory=set[str])

    def input(self, name: str, elem: Elem, dims: Sequence[Dim]) -> Tensor:
        """Something that is given at every step."""
        return self._kept(self.inputs, name, elem, dims)

    def weight(self, name: str, elem: Elem, dims: Sequence[int]) -> Tensor:
        """A constant whose values are known by ``name``."""
        return self._kept(self.weights, name, elem, dims)

    def add(self, layer: Layer, name: str = "") -> tuple[Tensor, ...]:
        """Append ``layer``; its outputs. ``NotExpressible`` where TensorRT would not take it."""
        made = layer.infer()
        name = take_name(name or type(layer).__name__.lower(), self.taken)
        names = [name, *(take_name(f"{name}.{i}", self.taken) for i in range(1, len(made)))]
        outputs = tuple(Tensor(n, elem, tuple(dims)) for n, (elem, dims) in zip(names, made, strict=True))
        self.layers.append(Placed(name, layer, outputs))
        return outputs

    def output(self, name: str, tensor: Tensor, alias: str | None = None) -> None:
        """Let ``tensor`` leave the network as ``name``, in the memory of the input ``alias`` if given."""
        self.outputs[name] = tensor
        if alias is not None:
            self.aliases[name] = alias

    def _kept(self, among: list[Tensor], name: str, elem: Elem, dims: Sequence[Dim]) -> Tensor:
        assert name not in self.taken, f"two tensors {name}"
        self.taken.add(name)
        among.append(Tensor(name, elem, tuple(dims)))
        return among[-1]

    def check(self) -> None:
        """Hold what no layer sees alone: what is renewed in place comes from outside, and leaves again."""
        renewed = [(p, getattr(p.layer, p.layer.renews)) for p in self.layers if p.layer.renews]
        for p, cache in renewed:
            name = next((n for n, t in self.outputs.items() if t is p.outputs[0]), None)
            if cache not in self.inputs or name is None or self.aliases.get(name) != cache.name:
                raise p.layer.refuse(f"{cache} is no input of the network that leaves it as an alias")
            if sum(c is cache for _, c in renewed) > 1:
                raise p.layer.refuse(f"{cache} is renewed twice")

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that its inputs depend on: what an optimization profile gives ranges for."""
        return frozenset(s for t in self.inputs for d in t.dims for s in symbols(d))

    def sizes(self, given: Mapping[str, torch.Tensor]) -> Sizes:
        """What the symbols are, from the shapes of the inputs."""
        found = Sizes()
        for t in self.inputs:
            for d, n in zip(t.dims, given[t.name].shape, strict=True):
                if isinstance(d, Sym) and len(symbols(d)) == 1 and str(d) in symbols(d):
                    found.setdefault(str(d), n)
            found.device = given[t.name].device
        return found

    def run(
        self,
        given: Mapping[str, torch.Tensor],
        weights: Callable[[str], torch.Tensor],
        known: Mapping[Tensor, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Every output, computed in torch. What a layer leaves must be of the element and dims it said.

        Tensors that are ``known`` are not computed again.
        """
        self.check()
        sizes, known = self.sizes(given), known or {}
        values: dict[Tensor, torch.Tensor] = {t: given[t.name] for t in self.inputs}
        values |= {t: weights(t.name) for t in self.weights}
        for t, x in list(values.items()):
            _check(t, x, sizes)
        values |= known
        for p in (p for p in self.layers if p.outputs[0] not in known):
            for t, x in zip(p.outputs, p.layer.run(values.__getitem__, sizes), strict=True):
                _check(t, x, sizes)
                values[t] = x
        return {name: values[t] for name, t in self.outputs.items()}

    def __str__(self) -> str:
        rows = [f"{t}  # input" for t in self.inputs] + [f"{t}  # weight" for t in self.weights]
        rows += [f"{', '.join(map(str, p.outputs))} = {_call(p.layer)}" for p in self.layers]
        for name, t in self.outputs.items():
            alias = f"  # in {self.aliases[name]}" if name in self.aliases else ""
            rows.append(f"return {name} = {t.name}{alias}")
        return "\n".join(rows)


def size_of(d: Dim, sizes: Mapping[str, int]) -> int:
    """A dim as a number."""
    if isinstance(d, int):
        return d
    total = 0
    for names, factor in d.terms:
        for name in names:
            factor *= sizes[name]
        total += factor
    return total


def _check(t: Tensor, x: torch.Tensor, sizes: Mapping[str, int]) -> None:
    wanted = tuple(size_of(d, sizes) for d in t.dims)
    assert tuple(x.shape) == wanted, f"{t}: {list(x.shape)}, not {list(wanted)}"
    assert x.dtype == t.elem.torch, f"{t}: {x.dtype}"


def _call(layer: Layer) -> str:
    def show(x: Any) -> str:
        if isinstance(x, Tensor):
            return x.name
        return f"({', '.join(map(show, x))})" if isinstance(x, tuple) else str(x)

    given = [(f.name, getattr(layer, f.name), f.default) for f in fields(layer)]  # type: ignore[arg-type]
    said = [f"{name}={show(x)}" for name, x, default in given if x is not default and x != default]
    return f"{type(layer).__name__}({', '.join(said)})"
