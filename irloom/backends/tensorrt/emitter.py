"""A network, added to a network definition of TensorRT layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim, Sym, symbols
from irloom.ir.elem import ELEMS, Elem

from .network import Layer, Network, NotExpressible, Placed, Tensor
from .weights import as_weights, data_type

if TYPE_CHECKING:
    import torch


def bindings(net: Network) -> dict[str, str]:
    """What each output is called in the engine: here a cache that is renewed has the name of the input."""
    given = {t.name for t in net.inputs}
    return {name: f"{name}.out" if name in given else name for name in net.outputs}


class Refused(NotExpressible):
    """The library does not take what its documentation allows; the log of the builder says why."""


class Definition:
    """A network definition of the API, whose calls raise where the API returns nothing."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._network, name)
        return partial(self._add, name, found) if name.startswith("add_") else found

    @staticmethod
    def _add(name: str, call: Callable[..., Any], *args: Any) -> Any:
        made = call(*args)
        if made is None:
            raise Refused(f"{name}: the library makes nothing of it", hint="the log of the builder says why")
        return made


class Emitter:
    """``trt`` is the Python API, ``network`` the definition that is being made, ``to[tensor]`` a value in it.

    ``weights`` gives the values of a weight, on the host. The definition refers to their memory, and this
    object keeps it: it must outlive the build.
    """

    def __init__(self, trt: Any, network: Any, weights: Callable[[Tensor], torch.Tensor]) -> None:
        self.trt, self.network, self.weights = trt, Definition(network), weights
        self.values: dict[Tensor, Any] = {}
        self._held: list[torch.Tensor] = []
        self._sources: dict[str, tuple[Tensor, int]] = {}
        self._dims: dict[Dim, Any] = {}

    def __getitem__(self, t: Tensor) -> Any:
        return self.values[t]

    def emit(self, net: Network) -> None:
        """Add every input, weight and layer of ``net``, and mark its outputs."""
        net.check()
        for t in net.inputs:
            self.values[t] = self._input(t)
        for t in net.weights:
            self.values[t] = self._weight(t)
        for p in net.layers:
            self._layer(p)
        for name, t in net.outputs.items():
            self._output(bindings(net)[name], t, net)

    def dtype(self, elem: Elem) -> Any:
        """The API's type of an element."""
        return data_type(self.trt, elem)

    def symbolic(self, dims: Sequence[Dim]) -> bool:
        """Whether a dim is only known when a step runs."""
        return any(isinstance(d, Sym) for d in dims)

    def dims(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        """Dims as the API takes them: -1 where one is only known when a step runs."""
        return tuple(-1 if isinstance(d, Sym) else d for d in dims)

    def constant(self, elem: Elem, values: torch.Tensor) -> Any:
        """Values that are part of the network."""
        weights, held = as_weights(self.trt, elem, values)
        self._held.append(held)
        return self.network.add_constant(tuple(values.shape), weights).get_output(0)

    def sizes(self, dims: Sequence[Dim]) -> Any:
        """Dims as a shape tensor, i64[n]: worked out from the shapes of the inputs."""
        parts = [self._dim(d) for d in dims]
        if len(parts) == 1:
            return parts[0]
        return self.network.add_concatenation(parts).get_output(0)

    def _dim(self, d: Dim) -> Any:
        """One dim, i64[1]."""
        if d not in self._dims:
            self._dims[d] = self._symbol(str(d)) if str(d) in symbols(d) else self._polynomial(d)
        return self._dims[d]

    def _polynomial(self, d: Dim) -> Any:
        import torch

        def times(a: Any, b: Any, op: str) -> Any:
            kind = getattr(self.trt.ElementWiseOperation, op)
            return self.network.add_elementwise(a, b, kind).get_output(0)

        total: Any = None
        for names, factor in d.terms if isinstance(d, Sym) else (((), d),):
            term: Any = None
            if factor != 1 or not names:
                term = self.constant(ELEMS["i64"], torch.tensor([factor]))
            for name in names:
                term = self._symbol(name) if term is None else times(term, self._symbol(name), "PROD")
            total = term if total is None else times(total, term, "SUM")
        return total if total is not None else self.constant(ELEMS["i64"], torch.tensor([0]))

    def _symbol(self, name: str) -> Any:
        if name not in self._sources:
            raise NotExpressible(
                f"no input of the network has a dim {name}", hint="give it an input that has, however small"
            )
        t, i = self._sources[name]
        shape = self.network.add_shape(self.values[t]).get_output(0)
        return self.network.add_slice(shape, (i,), (1,), (1,)).get_output(0)

    def _input(self, t: Tensor) -> Any:
        made = self.network.add_input(t.name, self.dtype(t.elem), self.dims(t.dims))
        for i, d in enumerate(t.dims):
            if isinstance(d, Sym):
                made.set_dimension_name(i, str(d))
                if str(d) in symbols(d):
                    self._sources.setdefault(str(d), (t, i))
        return made

    def _weight(self, t: Tensor) -> Any:
        weights, held = as_weights(self.trt, t.elem, self.weights(t))
        self._held.append(held)
        layer = self.network.add_constant(self.dims(t.dims), weights)
        layer.name = layer.get_output(0).name = t.name
        self.network.set_weights_name(weights, t.name)
        return layer.get_output(0)

    def _layer(self, p: Placed) -> None:
        first = self.network.num_layers
        made = p.layer.emit(self)
        count = self.network.num_layers
        for i in range(first, count):
            rest = f".{count - 1 - i}" if i < count - 1 else ""
            self.network.get_layer(i).name = f"{p.name}{rest}"
        for t, value in zip(p.outputs, made, strict=True):
            self._compare(t, value, p.layer)
            value.name = t.name
            self.values[t] = value

    def _compare(self, t: Tensor, value: Any, layer: Layer) -> None:
        """Hold the library's own inference against that of the layer; -1 is a dim it learns later."""
        try:
            shape = tuple(value.shape)
        except (RuntimeError, ValueError) as e:
            raise Refused(f"{type(layer).__name__}: {e}", hint=f"see {layer.source}") from None
        said = zip(shape, self.dims(t.dims), strict=False)
        fits = len(shape) == len(t.dims) and all(n in (-1, d) for n, d in said)
        if not fits or value.dtype != self.dtype(t.elem):
            raise Refused(f"{t}: the library makes {value.dtype} {list(shape)} of it", hint=layer.source)

    def _output(self, name: str, t: Tensor, net: Network) -> None:
        value = self.values[t]
        if value.is_network_output or t in net.inputs:
            value = self.network.add_identity(value).get_output(0)
        value.name = name
        self.network.mark_output(value)
