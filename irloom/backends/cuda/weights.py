"""The weights that a program's launches read: each for every layer that it is bound in."""

from __future__ import annotations

from collections.abc import Callable

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import Report
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Quant
from irloom.ir.graph import Param
from irloom.ir.graph import Value as Known

from . import weight_store
from .fragments import span_of
from .program import Launch, Program
from .runner import Weights
from .weight_store import Wanted


def bound(program: Program) -> dict[tuple[Param, int | None], Wanted]:
    """Every weight as launches read it, by its parameter and the layer."""
    layers: dict[str, dict[int | None, None]] = {"main": {None: None}}
    for c, layer, _ in program.module.calls():
        layers.setdefault(c.callee, {})[layer] = None
    read, spans = set(program.weights), fragment_spans(program)
    return {
        (p, layer): _wanted(f"{f.name}.{p.name}.{layer}", p, layer, spans.get(p, 0))
        for f in program.functions.values()
        for p in f.params
        if p in read
        for layer in layers[f.name]
    }


def _wanted(name: str, p: Param, layer: int | None, span: int = 0) -> Wanted:
    assert p.weight is not None
    return Wanted(name, p.weight, layer, p.type, span)


def fragment_spans(program: Program) -> dict[Param, int]:
    """The weights that lie in fragments, and their spans: products of rows of 16 bits alone read them."""
    steps = [s for f in program.functions.values() for s in f.steps]
    others = {v for s in steps for v in s.values if not isinstance(s, Launch) or s.kernel != "product"}
    given = [s.args for s in steps if isinstance(s, Launch) and s.kernel == "product"]
    wide = {w for x, w, *_ in given if isinstance(x, Known) and getattr(x.type.elem, "bits", 0) != 16}
    wide |= {v for _, _, *rest in given for v in rest if isinstance(v, Known)}
    spans = {w: _span(w) for _, w, *_ in given if isinstance(w, Param) and w not in others | wide}
    return {w: span for w, span in spans.items() if span}


def _span(p: Param) -> int:
    """Entries of a span of a weight, 0 where it lies in rows."""
    dims = [d for d in p.type.dims if isinstance(d, int)]
    return span_of(p.type.elem, tuple(dims)) if p.weight is not None and isinstance(p.type.elem, Quant) else 0


def write_weights(out: EngineWriter, program: Program, checkpoint: Checkpoint, report: Report) -> None:
    """Store every weight, or a link to its bytes; what has to be computed is, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight_store.write(out, bound(program).values(), checkpoint, report, program.module.consts, device)


def read_weights(
    engine: EngineReader, program: Program, device: torch.device
) -> tuple[Weights, Callable[[], object]]:
    """Every weight on the device, zeros until it is there; the second waits until all are."""
    wanted = bound(program)
    arriving = weight_store.read(engine, wanted.values(), device)
    by_place = {place: arriving.operands[w.name] for place, w in wanted.items()}
    return lambda p, layer: by_place[p, layer], arriving.wait


def stored_bytes(engine: EngineReader) -> int:
    """Bytes of all weights."""
    return weight_store.stored_bytes(engine)
