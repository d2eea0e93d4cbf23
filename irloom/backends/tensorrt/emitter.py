"""A network, added to a network definition of TensorRT layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .network import Network, Tensor


class Emitter:
    """``trt`` is the Python API, ``network`` the definition that is being made, ``to[tensor]`` a value in it.

    ``weights`` gives the values of a weight by its name, as the API takes them.
    """

    def __init__(self, trt: Any, network: Any, weights: Callable[[Tensor], Any]) -> None:
        self.trt, self.network, self.weights = trt, network, weights
        self.values: dict[Tensor, Any] = {}

    def __getitem__(self, t: Tensor) -> Any:
        return self.values[t]

    def emit(self, net: Network) -> None:
        """Add every input, weight and layer of ``net``, and mark its outputs."""
        raise NotImplementedError
