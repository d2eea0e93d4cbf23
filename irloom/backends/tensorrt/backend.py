"""The TensorRT target: networks become plans, which hold no weights; open checks, refits and runs them.

A plan is native code. Nothing of an engine is deserialized before its bytes, its library and its GPU are what
the manifest says.
"""

from __future__ import annotations

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import START, Limits, Networks, Report
from irloom.backends.gpu import gpu
from irloom.backends.machine import cores
from irloom.backends.pools import cache_plan
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module
from irloom.runtime.core import Engine

from .engine import TensorRTEngine
from .executor import PlanExecutor, Scratch
from .graphs import graphed
from .library import PLAIN, Kernels, Library, LibraryMissing, load
from .lower import Cut, lower
from .opening import fitting, kernels, open_plans, program_of
from .plan import Builder, Recipe
from .plan_cache import plans
from .profiles import Ranges, profiles
from .program import Program
from .structure import Structure
from .summary import declined, fallbacks, networks
from .weight_store import Weights, write_weights

KEPT = (
    "expert_linear", "floor_div", "gelu", "gelu_mul", "head_linear", "l2_norm", "layer_norm", "linear_act",
    "moe", "rms_norm", "rope", "route", "silu", "silu_mul", "softcap", "softplus", "weighted_sum",
)  # fmt: skip
"""Ops that could be written in simpler ones, and have a lowering of their own."""

SEGMENTS, LOG = "segments.json", "build.log"


PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that a plan of TensorRT for RTX is for, where none is named:
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html."""
RTX = ("7.5", *PORTABLE, "12.1")
"""Compute capabilities that TensorRT for RTX runs on."""


class TensorRTBackend:
    """See ``backends.core.Backend``."""

    name = "tensorrt"
    dtype = "bf16"
    later: tuple[str, ...] = ()
    pipeline = (
        *START,
        "fuse-mlp(join=False)",
        "fuse-moe",
        f"decompose(keep={KEPT})",
        "kv-cache",
        "kv-plan(layout=linear, max_seqs=64, max_tokens=512)",
    )

    def lacks(self) -> str | None:
        """A library, and for one that times kernels a GPU, is needed to build."""
        try:
            library = load()
        except LibraryMissing as error:
            return f"{error.message} ({error.hint})"
        portable = library.name == "tensorrt_rtx"
        return None if portable or gpu() else f"an NVIDIA GPU, which {library} builds on"

    def lowered(self, m: Module) -> str:
        """The networks, and the ops between them, as text."""
        return str(lower(m, kernels=_kernels()))

    def fallbacks(self, m: Module) -> dict[str, int]:
        """Ops that run between the networks."""
        return fallbacks(lower(m, kernels=_kernels()))

    def declined(self, m: Module) -> dict[str, str]:
        """Why they do."""
        return declined(lower(m, kernels=_kernels()))

    def networks(self, m: Module) -> Networks:
        """See ``backends.core.NetworkBackend``."""
        return networks(lower(m, kernels=_kernels()))

    def fingerprint(self) -> dict[str, str]:
        """The library, and the GPU that plans are for."""
        try:
            builder = builder_here(load())
        except LibraryMissing:
            return {}
        return {builder.library: builder.version, "gpu": str(gpu() or "none"), "weights": builder.held}

    def prepare(self) -> None:
        """Nothing can start before the networks are known."""

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """Module, plans, their log, and the weights that are not in the checkpoint as they are."""
        report("lower", 0, 1)
        settings = out.manifest.settings
        library, plan = load(), cache_plan(m)
        program, settings["cut"] = cut_well(m, settings.get("cut"), kernels(library))
        out.write_program(m, plan)
        out.write_text("lowered.txt", str(program))
        settings["fallbacks"] = fallbacks(program)
        report("lower", 1, 1)
        builder = builder_here(library)
        out.manifest.versions[library.name] = library.version
        out.manifest.machine.update(gpu=builder.gpu, compute=list(builder.targets))
        write_plans(program, builder, out, report)
        write_weights(program, checkpoint, out, report)

    def wake(self) -> None:
        """Nothing: the library is loaded with the first plan."""

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """Compare what must fit, then deserialize the plans and give them their weights."""
        library, _ = fitting(engine)
        program, max_context = program_of(engine, limits)
        weights, scratch = Weights(engine), Scratch(library.trt, torch.device("cuda"))
        plans = open_plans(engine, program, library, weights)
        executors = [
            graphed(PlanExecutor(segment.network, plan, scratch))
            for segment, plan in zip(program.segments, plans, strict=True)
        ]
        fit = Ranges.of(program).fit(limits)
        return TensorRTEngine(
            program, executors, weights.of_body, fit, max_context, packed=program.packed, filled=True
        )


def _kernels() -> Kernels:
    """What the library that would build has on this GPU; without one, what every TensorRT has."""
    try:
        return kernels(load())
    except LibraryMissing:
        return PLAIN


def cut_well(m: Module, asked: Cut | None, has: Kernels = PLAIN) -> tuple[Program, Cut]:
    """The program cut as ``asked``; else at its layers if at most half of all that is built is left then.

    The builder takes as long as a network has layers of its own, and builds those of one structure once.
    """
    if asked is not None:
        return lower(m, asked, kernels=has), asked
    whole, layer = (lower(m, cut, kernels=has) for cut in ("whole", "layer"))
    sizes = [(Structure.of(s.network).text, len(s.network.layers)) for s in layer.segments]
    halved = 2 * sum(dict(sizes).values()) <= sum(size for _, size in sizes)
    return (layer, "layer") if halved else (whole, "whole")


def builder_here(library: Library) -> Builder:
    """What plans are built with on this machine.

    TensorRT times kernels, so its plans are for the GPU they were built on. TensorRT for RTX chooses kernels
    when a plan runs, and builds without a GPU for several at once; but plans that can be refitted it builds
    for the GPU that is here alone.
    """
    here, rtx = gpu(), library.name == "tensorrt_rtx"
    if here is None or (rtx and here.compute not in RTX):
        return Builder(library.name, library.version, None, PORTABLE if rtx else (), "inputs")
    return Builder(library.name, library.version, None if rtx else here.name, (here.compute,), "refit")


def recipes(program: Program, builder: Builder) -> list[tuple[Recipe, dict[str, str]]]:
    """What makes the plan of each network, with the network's names for what the plan names."""
    ranges = Ranges.of(program)
    nets = [segment.network for segment in program.segments]
    return [Recipe.of(net, profiles(net, ranges), builder) for net in nets]


def write_plans(program: Program, builder: Builder, out: EngineWriter, report: Report) -> None:
    """Build each distinct network once and put its plan into the engine, with the log of its build."""
    made = recipes(program, builder)
    segments = [{"plan": recipe.key, "names": names} for recipe, names in made]
    at_once = cores() if builder.gpu is None else 1  # kernels are timed on a GPU that nobody else uses
    built = plans((recipe for recipe, _ in made), report, at_once)
    logs: list[str] = []
    for key, one in built.items():
        out.file(f"plans/{key}.plan").write_bytes(one.read())
        logs += [f"== {key}", one.log.read_text(encoding="utf-8", errors="replace")]
    out.write_text(LOG, "\n".join(logs))
    out.write_json(SEGMENTS, {"held": builder.held, "segments": segments})


BACKEND = TensorRTBackend()
