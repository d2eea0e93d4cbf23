"""What a network is apart from its names: networks of layers that are alike become one and the same."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from .network import Layer, Network, Tensor
from .program import STEP


@dataclass(frozen=True)
class Structure:
    """``network`` has names that count (``w0``, ``in1``, ``in2.k``); ``names`` gives those they stand for.

    Networks of equal ``text`` are equal, so that one engine serves all of them, each with its own weights,
    caches and values. Arrays of the step keep their names.
    """

    network: Network
    names: dict[str, str]

    @property
    def text(self) -> str:
        """The network, as it is printed."""
        return str(self.network)

    @staticmethod
    def of(net: Network) -> Structure:
        """The structure of a network."""
        new, names = Network(), dict[str, str]()
        swap: dict[Tensor, Tensor] = {}
        roots: dict[str, str] = {}
        for t in net.inputs:
            root, dot, tail = t.name.partition(".")  # only a cache has a dot in its name
            name = root if root in STEP else roots.setdefault(root, f"in{len(roots)}") + dot + tail
            names[name] = t.name
            swap[t] = new.input(name, t.elem, t.dims)
        for i, t in enumerate(net.weights):
            names[f"w{i}"] = t.name
            swap[t] = new.weight(f"w{i}", t.elem, [d for d in t.dims if isinstance(d, int)])
        for i, p in enumerate(net.layers):
            what = getattr(p.layer, "op", type(p.layer).__name__.lower())
            made = new.add(_with(p.layer, swap), f"{i}.{what}")
            swap.update(zip(p.outputs, made, strict=True))
        given = {mine: name for name, mine in names.items()}
        for i, (mine, t) in enumerate(net.outputs.items()):
            alias = given[net.aliases[mine]] if mine in net.aliases else None
            name = alias or f"out{i}"
            names[name] = mine
            new.output(name, swap[t], alias)
        return Structure(new, names)


def _with(layer: Layer, swap: dict[Tensor, Tensor]) -> Layer:
    """A layer with other inputs."""

    def new(x: Any) -> Any:
        if isinstance(x, Tensor):
            return swap[x]
        return tuple(map(new, x)) if isinstance(x, tuple) else x

    return replace(layer, **{f.name: new(getattr(layer, f.name)) for f in fields(layer)})  # type: ignore[type-var,arg-type]
