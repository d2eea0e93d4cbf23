"""A program, run once at every kind of size, so that its kernels are compiled and chosen: part of a build.

What is in weights and caches does not matter for that, so a layer's weights stand in for all layers'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import torch

from irloom.backends.core import Limits, Report
from irloom.backends.locks import locked
from irloom.backends.pools import cache_plan
from irloom.ir.elem import Elem, Quant
from irloom.ir.graph import Loop, Param
from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, SamplingRow
from irloom.runtime.request import SamplingParams

from . import checks
from .ahead import compile_all, rehearsed
from .engine import CudaEngine
from .fragments import FORM, beside, dims_of
from .graphs import Graphs
from .memory import shape
from .program import Program, Step
from .quantized import Operand, Quantized
from .runner import Weights
from .trials import queue_all, trial
from .tuning import tuner
from .weights import fragment_spans


def warm_up(program: Program, limits: Limits, report: Report) -> None:
    """Compile and choose all kernels for steps within ``limits``, on the GPU that is here."""
    limits = replace(limits, max_context=limits.max_tokens)
    program = once_round(program)
    engine = CudaEngine(program, any_weights(program), _pools(program, limits), limits, limits.max_tokens)
    engine.graphs = Graphs(enabled=False)  # a step that ran in another's graph would choose nothing
    todo = list(batches(engine))
    if not program.fallbacks:  # bodies would look at what no kernel has made
        compile_all(rehearsed(lambda: _queue(engine, todo)), lambda n, of: report("compile", n, of))
    checks.once(engine.device)
    todo.sort(key=lambda batch: -len(batch.tokens))  # what sizes share a choice, the largest makes
    with _alone():
        for done, batch in enumerate(todo):
            report("choose", done, len(todo))
            engine.submit(batch).take()
    report("choose", len(todo), len(todo))


def _queue(engine: CudaEngine, todo: Sequence[Batch]) -> None:
    """All that serving and opening an engine launch; what takes the longest to compile at the end."""
    queue_all(engine, todo)
    checks.once(engine.device)


@contextmanager
def _alone() -> Iterator[None]:
    """Inside, no other build on this machine times its kernels: they would disturb each other's clocks."""
    with ExitStack() as held:
        with suppress(OSError):  # where nothing can be written, nobody else keeps time either
            held.enter_context(locked(tuner().file.with_suffix(".timing")))
        yield


def once_round(program: Program) -> Program:
    """The program with the first lap of each loop alone: the others launch the same kernels."""
    functions = {
        name: replace(f, steps=[_first_lap(s) for s in f.steps]) for name, f in program.functions.items()
    }
    return replace(program, functions=functions)


def _first_lap(s: Step) -> Step:
    return replace(s, stop=min(s.stop, s.start + 1)) if isinstance(s, Loop) else s


def batches(engine: CudaEngine) -> Iterator[Batch]:
    """Steps that decode, and steps that read one prompt, of every size that steps are filled up to; and of
    every number of sequences, a step whose first one brings more than a token. One draws with a cut, one
    reports.
    """
    tokens = [min(n, engine.max_tokens) for n in engine.buckets.tokens]
    yield from (trial(engine, [1] * min(n, engine.max_seqs)) for n in engine.buckets.decodes)
    yield from (trial(engine, [n]) for n in tokens)
    for n in (min(n, engine.max_seqs) for n in engine.buckets.seqs[1:]):
        least = min((t for t in tokens if t > n), default=tokens[-1])
        ones = min(n, least - 1) - 1  # beside a first one of two tokens or more
        yield trial(engine, [least - ones, *[1] * ones])
    drawn = trial(engine, [1])
    drawn.draws["temperature"], drawn.draws["top_p"] = 1, 0.9
    yield drawn
    yield replace(drawn, sampling=[SamplingRow(SamplingParams(logprobs=1), 0, 0)], rare=(0,))


def _pools(program: Program, limits: Limits) -> tuple[Pool, ...]:
    """Pages for a prompt as long as a step, or for as many sequences of a token."""
    plan = cache_plan(program.module)
    one = plan.pools(limits.max_tokens, 1, limits.max_tokens)
    return tuple(replace(p, pages=max(p.pages, limits.max_seqs)) for p in one)


def any_weights(program: Program, device: torch.device | str = "cuda") -> Weights:
    """Random weights of each parameter's type, the same for every layer.

    Of both signs, as those that are multiplied later: power, and so time, depends on the bits that change.
    """
    held: dict[Param, Operand] = {}
    spans = fragment_spans(program)
    draw = torch.Generator(device).manual_seed(0)

    def value(p: Param, layer: int | None) -> Operand:
        if p not in held:
            held[p] = _random(p, draw, spans.get(p, 0))
        return held[p]

    return value


def _random(p: Param, draw: torch.Generator, span: int) -> Operand:
    dims, elem = tuple(shape(p.type.dims, {})), p.type.elem
    if isinstance(elem, Elem) and elem.kind == "float":
        return _normal(dims, 0.02, draw).to(elem.torch)
    if not isinstance(elem, Quant):
        return torch.zeros(dims, dtype=p.type.plain.torch, device=draw.device)
    width = dims[-1] // 2 if elem.base.bits == 4 else dims[-1]
    wide = dims_of(dims, span) if span else (*dims[:-1], width)
    if elem.base.kind == "float" and elem.base.bits == 8:
        values = _normal(wide, 100, draw).to(elem.base.torch)
    else:
        entries = torch.randint(0, 256, wide, dtype=torch.uint8, device=draw.device, generator=draw)
        values = entries if elem.base.bits == 4 else entries.view(elem.base.torch)
    scales = beside(dims, span) if span else shape(elem.scale_dims(p.type.dims), {})
    scales = torch.full(scales, 2e-4, device=draw.device)
    zeros = None if elem.zero is None else torch.zeros_like(scales).to(elem.zero.torch)
    return Quantized(values, scales.to(elem.scale.torch), zeros, elem, FORM if span else "rows")


def _normal(dims: Sequence[int], deviation: float, draw: torch.Generator) -> torch.Tensor:
    x = torch.empty(dims, dtype=torch.bfloat16, device=draw.device)
    return x.normal_(0, deviation, generator=draw).clamp_(-4 * deviation, 4 * deviation)
