"""From an engine directory to plans that run: what must fit is compared first, then plans are deserialized.

``EngineReader`` has compared every byte with the manifest by now. What a plan takes beside: the library's
exact version, a GPU it was built for, limits within its profiles, and its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from irloom.backends.artifact import EngineReader
from irloom.backends.core import Limits
from irloom.backends.gpu import Gpu, gpu
from irloom.ir.errors import EngineMismatch

from .executor import Plan
from .library import Kernels, Library, LibraryMissing, load
from .lower import lower
from .network import Tensor
from .profiles import Ranges, choose, profiles
from .program import Program
from .weight_store import Weights
from .weights import as_weights, packed

if TYPE_CHECKING:
    import torch

LIBRARIES = ("tensorrt", "tensorrt_rtx")


def fitting(engine: EngineReader) -> tuple[Library, Gpu]:
    """The library and the GPU of this machine; ``EngineMismatch`` where the engine is for others."""
    built = {k: v for k, v in engine.manifest.versions.items() if k in LIBRARIES}
    try:
        library = load()
    except LibraryMissing as error:
        wanted = ", ".join(f"{k} {v}" for k, v in built.items())
        raise engine.refuse(f"the engine needs {wanted}; here, {error.message} ({error.hint})") from None
    engine.require(built, {library.name: library.version})
    here, machine = gpu(), engine.manifest.machine
    wanted = machine.get("gpu") or f"of compute capability {', '.join(machine['compute'])}"
    if here is None:
        raise EngineMismatch(
            f"{engine.folder}: the engine runs on an NVIDIA GPU {wanted}, and torch sees none here",
            hint="open it on a machine with such a GPU and a CUDA build of torch; "
            "--target cpu makes one for this machine",
        )
    fits = here.name == machine["gpu"] if machine.get("gpu") else here.compute in machine["compute"]
    if not fits:
        raise engine.refuse(f"the engine does not fit: built for a GPU {wanted}, here is {here}")
    return library, here


def kernels(library: Library) -> Kernels:
    """What the library has on the GPU of this machine."""
    here = gpu()
    return library.kernels(here.compute if here else None)


def program_of(engine: EngineReader, limits: Limits) -> tuple[Program, int]:
    """The program, which must be what this irloom makes of the module, and the context that it runs with."""
    settings = engine.manifest.settings
    program = lower(engine.module(), settings.get("cut", "whole"), kernels=kernels(load()))
    if str(program) != engine.read_text("lowered.txt"):
        raise engine.refuse("the program was lowered by another irloom than this one")
    ranges = Ranges.of(program)
    max_context = limits.context(int(settings["max_context"]))
    if limits.max_context is None and ranges.max_context is not None:
        max_context = min(max_context, ranges.max_context)
    ranges.check(ranges.fit(limits), max_context, engine.manifest.command)
    return program, max_context


def open_plans(engine: EngineReader, program: Program, library: Library, weights: Weights) -> list[Plan]:
    """The plan of every segment, with its weights. A plan that takes them as inputs is deserialized once."""
    stored = engine.read_json("segments.json")
    logger = library.trt.Logger(library.trt.Logger.WARNING)
    runtime = library.trt.Runtime(logger)
    ranges, refitted = Ranges.of(program), stored["held"] == "refit"
    made: dict[str, Any] = {}
    out: list[Plan] = []
    for segment, entry in zip(program.segments, stored["segments"], strict=True):
        key, name_of = entry["plan"], {own: plan for plan, own in entry["names"].items()}
        if refitted or key not in made:
            made[key] = _deserialized(engine, runtime, f"plans/{key}.plan")
        own = {name_of[t.name]: t for t in segment.network.weights}
        if refitted:
            refit(engine, library.trt.Refitter(made[key], logger), library.trt, own, weights)
        given = {} if refitted else {name: _on_device(weights(t), t) for name, t in own.items()}
        profile = partial(choose, profiles(segment.network, ranges))
        out.append(Plan(made[key], profile, name_of, given))
    return out


def refit(engine: EngineReader, refitter: Any, trt: Any, own: Mapping[str, Tensor], weights: Weights) -> None:
    """Fill a plan that was stripped of its weights.

    Each is a mapping of its file: the system reads its pages as they are copied to the GPU, and drops them
    when it likes, so no more of them is in memory than it has room for.
    """
    held: list[torch.Tensor] = []
    for name in refitter.get_all_weights():
        if name not in own:
            continue  # a constant of the network, which the plan still has
        values, memory = as_weights(trt, own[name].elem, weights(own[name]))
        held.append(memory)
        if not refitter.set_named_weights(name, values):
            raise engine.refuse(f"the plan does not take {own[name]} as its {name}")
    if missing := refitter.get_missing_weights():
        raise engine.refuse(f"the plan lacks weights that the engine does not have: {', '.join(missing[:3])}")
    if not refitter.refit_cuda_engine():
        raise engine.refuse("the plan could not be refitted with its weights")


def _deserialized(engine: EngineReader, runtime: Any, part: str) -> Any:
    made = runtime.deserialize_cuda_engine(engine.file(part).read_bytes())
    if made is None:
        raise engine.refuse(f"TensorRT does not open {part}; what it printed says why")
    return made


def _on_device(value: torch.Tensor, t: Tensor) -> torch.Tensor:
    return packed(t.elem, value).to("cuda")
