"""Capture: run a weightless library model once under ``torch.export`` and keep its graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from irloom.frontends.hf.blocks import replaced_blocks
from irloom.frontends.hf.cache import LayersRead
from irloom.frontends.hf.calling import Calling
from irloom.frontends.hf.experts import irloom_experts
from irloom.frontends.hf.interfaces import irloom_attention
from irloom.frontends.hf.kernels import recurrent_kernels
from irloom.frontends.hf.lengths import DYNAMIC, Lengths, lengths_of, settling_raises
from irloom.frontends.hf.literals import Literals
from irloom.frontends.hf.quiet import quiet
from irloom.frontends.hf.repeat import Repeats, Unlike, find_layers, marked
from irloom.frontends.hf.rotary import settled_rotation
from irloom.frontends.hf.skeleton import buffers_on
from irloom.frontends.hf.stamp import Whole, stamped
from irloom.frontends.hf.trace_errors import trace_error
from irloom.ir.errors import TraceError

LOG = logging.getLogger("irloom.trace")

TOKENS = 23
"""Traced token count. Prime, so that a model's padding to a multiple or its chunking cannot pass
unnoticed."""

PAST = 29


@dataclass(frozen=True)
class Capture:
    """A captured model: the graph, the values of its computed buffers, which symbol counts what, and how many
    tokens it takes at once (None: any number).
    """

    whole: Whole
    buffers: dict[str, Tensor]
    tokens: str
    past: str
    longest: int | None = None


def capture(model: nn.Module, repeats: bool = True, flat: bool = False, cached: bool = True) -> Capture:
    """Export ``model`` over T tokens after P cached ones, without running it on data.

    Weights are on one device, which may be meta: only their shapes and types are used. Attention, masks and
    cache writes are single ops (see ``ops.py``). Nothing is decomposed, so a linear stays a linear. Of layers
    that are alike two run (see ``repeat.py``), unless ``repeats`` is off; the graph is the same. A
    model that is ``flat`` takes ids without a batch dim; one that is not ``cached`` computes without a cache,
    as one does that would look into the layers of it.

    Raises ``TraceError`` with the module path and source line where the model cannot be captured.
    """
    wrapper = Calling(model, flat, cached)
    device = next((p.device for p in model.parameters()), torch.device("meta"))
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device=device)
    args = (ids, ids.clone(), torch.zeros(PAST, dtype=torch.int64, device=device))
    layers = Repeats(find_layers(wrapper) if repeats else {})
    with torch.no_grad(), Literals(), _as_ops(model), buffers_on(device, model) as buffers:
        try:
            with quiet():
                program, lengths = _export(wrapper, args, layers)
            whole = stamped(program, wrapper, layers)
        except Exception as error:
            looked = cached and isinstance(error, LayersRead)
            if not looked and not layers.marked and not isinstance(error, Unlike):
                raise trace_error(error, model) from error
            why = error
        else:
            return Capture(whole, buffers, lengths.tokens, lengths.past, lengths.longest)
    if looked:
        return capture(model, repeats, flat, cached=False)
    LOG.info("every layer of %s is traced on its own: %s", type(model).__name__, why)
    return capture(model, repeats=False, flat=flat, cached=cached)


def _export(wrapper: nn.Module, args: tuple[Tensor, ...], layers: Repeats) -> tuple[ExportedProgram, Lengths]:
    """The exported program, and what it requires of lengths; where it holds for one only, export again to
    stop at that line.
    """
    with marked(wrapper, layers):
        program = torch.export.export(wrapper, args, dynamic_shapes=DYNAMIC, strict=False)
    try:
        return program, lengths_of(program)
    except TraceError:
        if layers.marked:
            raise
        with settling_raises():
            torch.export.export(wrapper, args, dynamic_shapes=DYNAMIC, strict=False)
        raise


@contextlib.contextmanager
def _as_ops(model: nn.Module) -> Iterator[None]:
    """Within, what stays whole in a graph is one op of ours wherever ``model`` computes it."""
    ours = (irloom_attention, irloom_experts, recurrent_kernels, replaced_blocks, settled_rotation)
    with contextlib.ExitStack() as stack:
        for replaced in ours:
            stack.enter_context(replaced(model))
        yield
