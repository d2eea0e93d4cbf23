"""Each import checks itself: a tiny model of the same architecture, library against imported graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from irloom.frontends.hf.blocks.refused import Refused
from irloom.frontends.hf.calling import Calling
from irloom.frontends.hf.capture import capture
from irloom.frontends.hf.importer import import_graph
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.quiet import quiet
from irloom.frontends.hf.randomized import randomized
from irloom.frontends.hf.skeleton import skeleton
from irloom.frontends.hf.tiny import tiny_config
from irloom.ir.errors import TraceError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs

LENGTHS = (26, 1, 14)
"""Tokens of the sequences that are packed: more than a tiny window, fewer than traced, and one alone."""

TOLERANCE = 1e-4


def check_architecture(config: Any) -> float:
    """The largest difference of logits, relative to the largest logit; ``TraceError`` past the tolerance."""
    small = tiny_config(config)
    module, live = import_tiny(small)
    error = _difference(live, module, Calling(live), LENGTHS, small.get_text_config(decoder=True).vocab_size)
    if not error <= TOLERANCE:
        raise TraceError(
            f"{type(config).__name__}: on a tiny model its logits differ from the library's by {error:.1e}"
            f" (allowed {TOLERANCE:.0e})",
            hint="the architecture does something that irloom misreads; please report it",
        )
    return error


def import_tiny(config: Any, live: nn.Module | None = None) -> tuple[Module, nn.Module]:
    """A small config's program, and its model with random weights, unless that is ``live``.

    ``TraceError`` where it cannot be traced, or is a model that no trace could be right for.
    """
    try:
        model = skeleton(config, torch.float32)
        module = import_graph(capture(model), model, getattr(config, "model_type", "tiny"))
    except TraceError as error:
        error.at("on a tiny model of its kind")
        found = live or randomized(config)
        if isinstance(error, Refused) or not sees_later_tokens(found):
            raise
        why = TraceError(
            f"{type(found).__name__} is no decoder as it is configured: logits depend on later tokens",
            hint="see whether its config has a field for attention that looks back only",
        )
        why.places += error.places
        raise why from error
    return module, live or randomized(config)


def sees_later_tokens(model: nn.Module) -> bool:
    """Whether another token changes what the library's model says of the tokens before it."""
    ids = torch.arange(4, 4 + LENGTHS[0])
    try:
        with torch.inference_mode():
            logits = library_logits(model, ids)
            changed = {at: library_logits(model, ids.index_fill(0, torch.tensor(at), 4)) for at in (7, 25)}
    except Exception:
        return False  # the library cannot run it either
    moved = max(float((logits - other)[:at].abs().max()) for at, other in changed.items())
    return moved > TOLERANCE * max(1.0, float(logits.abs().max()))


def check_module(model: nn.Module, module: Module, flat: bool, longest: int) -> float:
    """The same for a built model, on its own weights; sequences are not longer than ``longest``."""
    (logits,) = module.main.returns
    vocab = logits.type.dims[-1]
    assert isinstance(vocab, int)
    lengths = [min(n, longest) for n in LENGTHS]
    error = _difference(model, module, Calling(model, flat), lengths, vocab)
    dtypes = {p.dtype for p in model.parameters()} - {torch.float32, torch.float64}
    allowed = max([TOLERANCE, *(16 * torch.finfo(d).eps for d in dtypes if d.is_floating_point)])
    if not error <= allowed:
        raise TraceError(
            f"{type(model).__name__}: logits of its trace differ from its own by {error:.1e}"
            f" (allowed {allowed:.0e})",
            hint="the module does something that irloom misreads: a state it keeps, or values it branches on",
        )
    return error


def _difference(
    model: nn.Module, module: Module, calling: Calling, lengths: Sequence[int], vocab: int
) -> float:
    """Of packed sequences of random ids, in units of the largest logit, or of 1 where that is less."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ids = torch.randint(min(3, vocab - 1), vocab, (sum(lengths),), generator=_generator(1))
    with quiet(), torch.inference_mode():
        try:
            expected = torch.cat([calling.alone(part.to(device)).cpu() for part in ids.split(list(lengths))])
        except Exception as error:  # whatever the library's code ends in
            raise TraceError(
                f"{type(model).__name__}: to check its trace, the library ran it on {max(lengths)} tokens, "
                f"and failed: {type(error).__name__}: {' '.join(str(error).split())}",
                hint="trace without the check: trace_hf(..., check=False)",
            ) from error
        (ours,) = Interpreter(module, LiveCheckpoint(model))(ids.int(), Seqs.of(lengths))
    return (ours.cpu() - expected).abs().max().item() / max(1.0, expected.abs().max().item())


def library_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The library's own logits f32[T, V] of one sequence."""
    return Calling(model).alone(ids)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
