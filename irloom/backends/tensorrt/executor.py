"""What runs a network: the plan that TensorRT made of it, or torch, layer by layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from irloom.ir.errors import IrloomError

from .network import Network, Sizes, Tensor

Tensors = Mapping[str, torch.Tensor]
STEPS = 64
"""Of so many sizes of a step something is remembered."""


class Executor(Protocol):
    """Runs one network on the current stream of its device."""

    network: Network

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """Compute from ``inputs`` what ``outputs`` are given the memory for; caches are renewed in place.

        Both go by the network's names, and all tensors are contiguous.
        """
        ...


class TorchExecutor:
    """The network's layers in torch, on any device: what a plan computes, without the library.

    ``weights`` gives the value of each weight on the device, by name. What depends on the sizes of a step
    alone is computed once for each: it comes from the host, and there is no way from there into a graph.
    """

    def __init__(self, network: Network, weights: Callable[[str], torch.Tensor]) -> None:
        self.network, self.weights = network, weights
        self.known: OrderedDict[tuple[tuple[str, int], ...], dict[Tensor, torch.Tensor]] = OrderedDict()

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See ``Executor``."""
        made = self.network.run(inputs, self.weights, self._known(self.network.sizes(inputs)))
        for name, out in outputs.items():
            out.copy_(made[name])
        for name, given in self.network.aliases.items():
            if made[name].data_ptr() != inputs[given].data_ptr():
                inputs[given].copy_(made[name])

    def _known(self, sizes: Sizes) -> dict[Tensor, torch.Tensor]:
        key = tuple(sizes.items())
        if key not in self.known:
            fixed = [p for p in self.network.layers if not p.layer.inputs]
            made = [(p.outputs, p.layer.run({}.__getitem__, sizes)) for p in fixed]
            self.known[key] = {t: x for ts, xs in made for t, x in zip(ts, xs, strict=True)}
            if len(self.known) > STEPS:
                self.known.popitem(last=False)
        return self.known[key]


def current_stream() -> int:
    """The address of the stream that torch queues on."""
    return torch.cuda.current_stream().cuda_stream


@dataclass(frozen=True)
class Plan:
    """A deserialized plan. ``profile(sizes)`` is the number of its profile, ``RequestError`` if none fits.

    ``names`` gives the plan's own name of each tensor of the network; ``weights`` are those that it takes as
    inputs, by the plan's names, on the device.
    """

    engine: Any
    profile: Callable[[Mapping[str, int]], int]
    names: Mapping[str, str]
    weights: Tensors


class PlanExecutor:
    """A plan of TensorRT: one execution context a profile, all on the ``scratch`` memory that plans share.

    An output that the plan does not write into the memory of its input, though the network says so, is
    copied there. ``stream()`` is the address of the stream to run on: the current one of torch.
    """

    def __init__(
        self, network: Network, plan: Plan, scratch: Scratch, stream: Callable[[], int] = current_stream
    ) -> None:
        self.network, self.plan, self.scratch, self.stream = network, plan, scratch, stream
        self.contexts: dict[int, Any] = {}
        self.copied = _copied(network)
        scratch.need(plan.engine.device_memory_size_v2)

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See ``Executor``. ``RequestError`` where no profile takes these sizes."""
        stream = self.stream()
        context = self._context(self.plan.profile(self.network.sizes(inputs)), stream)
        for name, x in inputs.items():
            _done(context.set_input_shape(self.plan.names[name], tuple(x.shape)), "takes no such dims", name)
            _done(context.set_tensor_address(self.plan.names[name], x.data_ptr()), "has no input", name)
        made = {name: torch.empty_like(inputs[self.network.aliases[name]]) for name in self.copied}
        aliased = {name: inputs[given] for name, given in self.network.aliases.items()}
        for name, x in {**aliased, **made, **outputs}.items():
            _done(context.set_tensor_address(self._output(name), x.data_ptr()), "has no output", name)
        _done(context.execute_async_v3(stream), "did not run", str(self.network.sizes(inputs)))
        for name, x in made.items():
            aliased[name].copy_(x)

    def _context(self, profile: int, stream: int) -> Any:
        if profile not in self.contexts:
            context = self.scratch.context(self.plan.engine)
            if context is None:
                raise IrloomError("TensorRT: no execution context", hint="less memory for caches leaves more")
            _done(context.set_optimization_profile_async(profile, stream), "has no profile", str(profile))
            for name, x in self.plan.weights.items():
                _done(context.set_tensor_address(name, x.data_ptr()), "has no weight", name)
            self.contexts[profile] = context
        context, memory = self.contexts[profile], self.scratch.memory
        context.set_device_memory(memory.data_ptr(), memory.numel())
        return context

    def _output(self, name: str) -> str:
        """What the plan calls an output: one that renews an input has another name than that."""
        mine = self.plan.names[name]
        return f"{mine}.out" if self.network.aliases.get(name) == name else mine


class Scratch:
    """Memory for what plans compute between their layers. They run one after the other, so one block serves
    all of them.

    A library that ``captures`` makes CUDA graphs by itself, of the kernels that it compiles for a shape.
    """

    def __init__(self, trt: Any, device: torch.device) -> None:
        self.trt = trt
        self.memory = torch.empty(256, dtype=torch.uint8, device=device)

    @property
    def captures(self) -> bool:
        """Whether the library has graphs of its own: TensorRT for RTX does."""
        return hasattr(self.trt, "CudaGraphStrategy")

    def context(self, engine: Any) -> Any:
        """A context that leaves its memory to this block; None where there is not enough of any other."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.captures:
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    def need(self, size: int) -> None:
        """Make the block as large as another plan needs it."""
        if size > self.memory.numel():
            self.memory = torch.empty(size, dtype=torch.uint8, device=self.memory.device)


def _copied(network: Network) -> list[str]:
    """Outputs that stand for an input's memory, but are not written there by the layer that makes them."""
    renewed = {t for p in network.layers if p.layer.renews for t in p.outputs}
    return [name for name in network.aliases if network.outputs[name] not in renewed]


def _done(ok: bool, what: str, where: str) -> None:
    if not ok:
        raise IrloomError(f"TensorRT: the plan {what}: {where}", hint="what it printed says why")
