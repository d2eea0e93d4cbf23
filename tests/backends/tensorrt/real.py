"""The installed library, asked whether it builds a network."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from irloom.backends.tensorrt.emitter import Emitter, Refused
from irloom.backends.tensorrt.library import LibraryMissing, load
from irloom.backends.tensorrt.network import Network, Tensor, size_of

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


def refusal(net: Network, *profiles: Ranges) -> str | None:
    """Why the library does not build ``net`` for ``profiles``; None where it does."""
    try:
        trt = load().trt
    except LibraryMissing as e:
        pytest.skip(str(e))
    said: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, msg: str) -> None:
            if (
                severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
                and "catchCudaError" not in msg[:60]
            ):
                said.append(msg)

    log = Log()
    builder = trt.Builder(log)
    definition, config = builder.create_network(0), builder.create_builder_config()
    emitter = Emitter(trt, definition, zeros)
    try:
        emitter.emit(net)
    except Refused as e:
        return f"{e.message}: {'; '.join(said)}"
    for ranges in profiles or (RANGES,):
        profile = builder.create_optimization_profile()
        for t in net.inputs:
            at = [{s: r[i] for s, r in ranges.items()} for i in range(3)]
            profile.set_shape(t.name, *(tuple(size_of(d, sizes) for d in t.dims) for sizes in at))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(definition, config)
    return None if plan is not None and not said else "; ".join(said) or "no plan"
