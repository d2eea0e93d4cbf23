"""What the executor of a plan tells the library, by a context that computes in torch from what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from irloom.backends.tensorrt.emitter import bindings
from irloom.backends.tensorrt.executor import Executor, Plan, PlanExecutor, Scratch
from irloom.backends.tensorrt.library import LibraryMissing, load
from irloom.backends.tensorrt.memory import shape
from irloom.backends.tensorrt.network import Network
from irloom.ir.errors import IrloomError, RequestError
from tests.backends.tensorrt.serving import Model

API = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"))
STREAM = 77


class Context:
    """Knows tensors by name, shape and address alone, and refuses what the library would refuse."""

    def __init__(
        self, network: Network, names: Mapping[str, str], memory: Callable[[int], torch.Tensor]
    ) -> None:
        self.network, self.names, self.memory = network, names, memory
        self.inputs = {names[t.name] for t in network.inputs}
        self.outputs = {self.called(own, plan): own for own, plan in bindings(network).items()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = 0
        self.scratch = (0, 0)

    def called(self, own: str, plan: str) -> str:
        return self.names[own] + plan.removeprefix(own)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return stream == STREAM

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def set_input_shape(self, name: str, dims: tuple[int, ...]) -> bool:
        self.shapes[name] = dims
        return name in self.inputs

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.inputs or name in self.outputs or name.startswith("w")

    def execute_async_v3(self, stream: int) -> bool:
        if self.addresses.keys() < self.inputs | self.outputs.keys() or not self.scratch[1]:
            return False
        given = {t.name: self.tensor(self.names[t.name]) for t in self.network.inputs}
        if any(tuple(x.shape) != self.shapes[self.names[name]] for name, x in given.items()):
            return False
        weights = {t.name: self.tensor(self.names[t.name]) for t in self.network.weights}
        made = self.network.run(given, weights.__getitem__)
        for plan, own in self.outputs.items():
            if self.network.aliases.get(own) is None:
                self.tensor(plan).copy_(made[own])
            elif self.addresses[plan] != self.addresses[self.names[self.network.aliases[own]]]:
                return False
        return stream == STREAM

    def tensor(self, name: str) -> torch.Tensor:
        return self.memory(self.addresses[name])


class Library:
    """Wraps executors as plans; ``memory`` finds what lies at an address."""

    def __init__(self) -> None:
        self.at: dict[int, torch.Tensor] = {}
        self.contexts: list[Context] = []
        self.scratch = Scratch(API, torch.device("cpu"))

    def __call__(self, executor: Executor) -> Executor:
        network, told = executor.network, self
        named = [*network.inputs, *network.weights]
        names = {t.name: f"{'w' if t in network.weights else 'in'}{i}" for i, t in enumerate(named)}
        names |= {name: f"out{i}" for i, name in enumerate(network.outputs) if name not in names}
        weights = {names[t.name]: executor.weights(t.name) for t in network.weights}  # type: ignore[attr-defined]
        self.at |= {x.data_ptr(): x for x in weights.values()}

        def context(strategy: str) -> Context:
            assert strategy == "user managed"
            self.contexts.append(Context(network, names, self.at.__getitem__))
            return self.contexts[-1]

        engine = SimpleNamespace(create_execution_context=context, device_memory_size_v2=5000 + len(names))
        plan = Plan(engine, lambda sizes: int(sizes.get("N", 2) > 1), names, weights)

        class Noted(PlanExecutor):
            def run(self, inputs: Any, outputs: Any) -> None:
                told.at |= {x.data_ptr(): x for x in (*inputs.values(), *outputs.values())}
                super().run(inputs, outputs)

        return Noted(network, plan, self.scratch, lambda: STREAM)


@pytest.mark.parametrize(("layout", "cut"), [("linear", "whole"), ("linear", "layer"), ("paged", "whole")])
def test_plans_are_told_names_dims_and_addresses(layout: str, cut: Any) -> None:
    """One context a profile, on memory that all share; caches are renewed where they are."""
    model, library = Model.of("llama"), Library()
    program = model.program(layout, cut=cut)
    engine = model.engine(program, wrap=library)
    assert model.served(engine, model.traffic(2)).error < 2e-5
    profiles = sorted((id(c.network), c.profile) for c in library.contexts)
    assert len(profiles) == len(set(profiles))
    decoding = [c for c in library.contexts if c.profile == 0]
    assert len(decoding) == sum("N" in s.network.symbols for s in program.segments)
    memory = library.scratch.memory
    assert {c.scratch for c in library.contexts} == {(memory.data_ptr(), memory.numel())}
    assert memory.numel() > 5000


def small() -> tuple[Network, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The first network of a model, and tensors for it."""
    network = Model.of("llama").program("paged").segments[0].network
    sizes = dict.fromkeys(network.symbols, 3)
    given = {t.name: torch.zeros(shape(t.dims, sizes), dtype=t.elem.torch) for t in network.inputs}
    left = {n: torch.zeros(shape(t.dims, sizes), dtype=t.elem.torch) for n, t in network.outputs.items()}
    return network, given, left


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("set_input_shape", "takes no such dims: positions"),
        ("set_tensor_address", "has no input: positions"),
        ("execute_async_v3", "did not run"),
        ("set_optimization_profile_async", "has no profile: 1"),
    ],
)
def test_what_the_library_refuses_is_an_error(refused: str, said: str) -> None:
    network, given, left = small()
    answers = ("set_input_shape", "set_tensor_address", "execute_async_v3", "set_optimization_profile_async")
    context = SimpleNamespace(**{name: lambda *_, ok=name != refused: ok for name in answers})
    context.set_device_memory = lambda *_: None
    engine = SimpleNamespace(create_execution_context=lambda _: context, device_memory_size_v2=0)
    names = {name: name for name in (*given, *left)}
    plan = Plan(engine, lambda _: 1, names, {})
    with pytest.raises(IrloomError, match=said):
        PlanExecutor(network, plan, Scratch(API, torch.device("cpu")), lambda: 0).run(given, left)


def test_no_memory_for_a_context_and_no_profile_are_errors() -> None:
    network, given, left = small()

    def none(sizes: Mapping[str, int]) -> int:
        raise RequestError(f"no profile takes {dict(sizes)}")

    engine = SimpleNamespace(create_execution_context=lambda _: None, device_memory_size_v2=0)
    for profile, error in ((lambda _: 0, "no execution context"), (none, "no profile takes")):
        plan = Plan(engine, profile, {}, {})
        with pytest.raises(IrloomError, match=error):
            PlanExecutor(network, plan, Scratch(API, torch.device("cpu")), lambda: 0).run(given, left)


@pytest.mark.tensorrt
def test_the_library_has_what_the_executor_calls() -> None:
    try:
        trt = load().trt
    except LibraryMissing as e:
        pytest.skip(e.message)
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    calls = [name for name in vars(Context) if name.startswith(("set_", "execute"))]
    assert [name for name in calls if not hasattr(trt.IExecutionContext, name)] == []
    if Scratch(trt, torch.device("cpu")).captures:
        assert hasattr(trt.ICudaEngine, "create_runtime_config")
        assert hasattr(trt.IRuntimeConfig, "set_execution_context_allocation_strategy")
        assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
        assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE is not None
    assert hasattr(trt.ICudaEngine, "create_execution_context")
    assert hasattr(trt.ICudaEngine, "device_memory_size_v2")
