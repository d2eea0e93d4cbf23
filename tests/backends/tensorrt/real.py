"""The installed library, asked whether it builds a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from irloom.backends.tensorrt.emitter import Emitter, Refused
from irloom.backends.tensorrt.library import LibraryMissing, load
from irloom.backends.tensorrt.network import Layer, Network, Tensor, size_of

Ranges = Mapping[str, tuple[int, int, int]]

RANGES: Ranges = {
    "T": (1, 8, 64),
    "S": (1, 2, 8),
    "B": (1, 2, 8),
    "N": (1, 4, 16),
}


DECODE: Ranges = {**RANGES, "T": (1, 4, 8), "N": (1, 1, 1)}
"""Steps in which every slot brings one token."""


def zeros(t: Tensor) -> torch.Tensor:
    return torch.zeros([int(str(d)) for d in t.dims], dtype=t.elem.torch)


class Question:
    """One network definition, and what the library says while it is made and built."""

    def __init__(self) -> None:
        try:
            self.trt = trt = load().trt
        except LibraryMissing as e:
            pytest.skip(str(e))
        self.said: list[str] = []
        said = self.said

        class Log(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                no_gpu = "catchCudaError" in msg[:60]
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and not no_gpu:
                    said.append(msg)

        self._log = Log()
        self.builder = trt.Builder(self._log)
        self.definition = self.builder.create_network(0)
        self.emitter = Emitter(trt, self.definition, zeros)

    def build(self, net: Network, profiles: Sequence[Ranges]) -> str | None:
        """Why the library does not build it; None where it does."""
        config = self.builder.create_builder_config()
        for ranges in profiles:
            profile = self.builder.create_optimization_profile()
            for t in net.inputs:
                at = [{s: r[i] for s, r in ranges.items()} for i in range(3)]
                profile.set_shape(t.name, *(tuple(size_of(d, sizes) for d in t.dims) for sizes in at))
            config.add_optimization_profile(profile)
        plan = self.builder.build_serialized_network(self.definition, config)
        return None if plan is not None and not self.said else "; ".join(self.said) or "no plan"


def refusal(net: Network, *profiles: Ranges, last: Layer | None = None) -> str | None:
    """Why the library does not build ``net`` for ``profiles``; None where it does.

    ``last`` is a layer that is added whatever its rules say.
    """
    question = Question()
    try:
        question.emitter.emit(net)
        for i, value in enumerate(last.emit(question.emitter) if last is not None else ()):
            value.name = f"out{i}"
            question.definition.mark_output(value)
    except (Refused, RuntimeError) as e:  # the bindings raise what an attribute does not take
        return f"{e}: {'; '.join(question.said)}"
    return question.build(net, profiles or (RANGES,))
