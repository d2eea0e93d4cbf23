"""Capture: run a weightless library model once under ``torch.export`` and keep its graph."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from irloom.frontends.hf.blocks import replaced_blocks
from irloom.frontends.hf.experts import irloom_experts
from irloom.frontends.hf.interfaces import irloom_attention
from irloom.frontends.hf.skeleton import buffers_on
from irloom.ir.errors import IrloomError, TraceError

TOKENS = 23
"""Traced token count. Prime, so that a model's padding to a multiple or its chunking cannot pass
unnoticed."""

PAST = 29
DATA_DEPENDENT = "what a model does must not depend on the values of its inputs"
LIBRARY = "the library's own code failed; see whether the model runs in transformers"
MAX_TOKENS = 1 << 20


@dataclass(frozen=True)
class Capture:
    """A captured model: the graph, the values of its computed buffers, and which symbol counts what."""

    program: ExportedProgram
    buffers: dict[str, Tensor]
    tokens: str
    past: str


def capture(model: nn.Module) -> Capture:
    """Export ``model`` over T tokens after P cached ones, without running it on data.

    Weights are on one device, which may be meta: only their shapes and types are used. Attention, masks and
    cache writes are single ops (see ``ops.py``). Nothing is decomposed, so a linear stays a linear.

    Raises ``TraceError`` with the module path and source line where the model cannot be captured.
    """
    wrapper = _Logits(model)
    device = next((p.device for p in model.parameters()), torch.device("meta"))
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device=device)
    args = (ids, ids.clone(), torch.zeros(PAST, dtype=torch.int64, device=device))
    tokens, past = Dim("T", min=2, max=MAX_TOKENS), Dim("P", min=2, max=MAX_TOKENS)
    shapes = {"input_ids": {1: tokens}, "position_ids": {1: tokens}, "past": {0: past}}
    with torch.no_grad(), _as_ops(model), buffers_on(device, model) as buffers:
        try:
            with _quiet():
                program = torch.export.export(wrapper, args, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise _trace_error(error, model) from error
    placeholders = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    return Capture(
        program, buffers, str(placeholders["input_ids"].shape[1]), str(placeholders["past"].shape[0])
    )


class _Logits(nn.Module):
    """The model as a function of ids [1, T], positions [1, T] and the number of cached tokens, to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes = set(inspect.signature(model.forward).parameters)

    def forward(self, input_ids: Tensor, position_ids: Tensor, past: Tensor) -> Tensor:
        from irloom.frontends.hf.cache import ProbingCache

        kwargs: dict[str, Any] = {"input_ids": input_ids}
        if "position_ids" in self.takes:
            kwargs["position_ids"] = position_ids
        for name in {"past_key_values", "cache_params"} & self.takes:
            kwargs |= {name: ProbingCache(past.shape[0]), "use_cache": True}
        out = self.model(**kwargs)
        if isinstance(out, Tensor):
            return out
        logits = getattr(out, "logits", None)
        return out[0] if logits is None else logits


@contextlib.contextmanager
def _as_ops(model: nn.Module) -> Iterator[None]:
    """Within, what stays whole in a graph is one op of ours wherever ``model`` computes it."""
    with irloom_attention(model), irloom_experts(model), replaced_blocks(model):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A failed export prints its whole graph; what matters of it is in the error."""
    log = logging.getLogger("torch.fx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _trace_error(error: BaseException, model: nn.Module) -> IrloomError:
    """The error of a failed export as a ``TraceError`` that says where in the model it happened."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    found = next((e for e in chain if isinstance(e, TraceError)), None)
    places = [(e, place) for e in chain if (place := _place(e, model))]
    origin, place = places[-1] if places else (error, "")
    if found is None and "Constraints violated" in str(error):
        found = TraceError(
            "the model computes in a way that holds for one number of tokens only",
            hint="it branches on, pads or reshapes by a length; such a block needs an op of its own",
        )
    if found is None:
        first = (str(origin).strip() or type(origin).__name__).splitlines()[0]
        found = TraceError(
            f"{type(origin).__name__} while tracing: {first}",
            hint=DATA_DEPENDENT if "DataDependent" in type(origin).__name__ else LIBRARY,
        )
    return found.at(place) if place and place not in found.places else found


def _place(error: BaseException, model: nn.Module) -> str:
    """Module path and source line of the innermost model frame of a traceback."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    frame: FrameType
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if id(owner) in paths:
            path = paths[id(owner)] or type(owner).__name__
            found = f"in {path} ({type(owner).__name__}), {frame.f_code.co_filename}:{line}"
    return found
