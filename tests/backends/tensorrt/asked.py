"""Single layers as networks, and whether the layer's own rules allow them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from irloom.backends.tensorrt.layers.fill import Constant
from irloom.backends.tensorrt.network import Layer, Network, NotExpressible, Tensor
from irloom.ir.dims import Dim, sym
from irloom.ir.elem import ELEMS

T, S, B, N = map(sym, "TSBN")


@dataclass
class Given:
    """Inputs of the layer in question, made as they are named."""

    net: Network = field(default_factory=Network)

    def __call__(self, elem: str, *dims: Dim) -> Tensor:
        return self.net.input(f"x{len(self.net.inputs)}", ELEMS[elem], dims)

    def weight(self, elem: str, *dims: int) -> Tensor:
        return self.net.weight(f"w{len(self.net.weights)}", ELEMS[elem], dims)

    def number(self, elem: str, value: float) -> Tensor:
        return self.net.add(Constant(ELEMS[elem], (), (value,)))[0]


Question = Callable[[Given], Layer]


def asked(question: Question) -> tuple[Network, Layer]:
    """What the layer is given, and the layer itself."""
    given = Given()
    layer = question(given)
    return given.net, layer


def allowed(question: Question) -> bool:
    """Whether the layer's own rules take it."""
    try:
        asked(question)[1].infer()
    except NotExpressible:
        return False
    return True


def network(question: Question) -> Network:
    """A network of the one layer."""
    net, layer = asked(question)
    cache = getattr(layer, layer.renews).name if layer.renews else None
    for i, t in enumerate(net.add(layer)):
        net.output(f"out{i}", t, cache)
    return net
