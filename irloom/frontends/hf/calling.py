"""How a model is called: which inputs are token ids, positions and a cache, and where its logits are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from irloom.frontends.hf.quiet import quiet
from irloom.ir.errors import TraceError

POSITIONS = ("position_ids", "positions", "pos_ids", "position", "pos", "input_pos")
CACHES = ("past_key_values", "cache_params")
HINT = "irloom calls forward(input_ids, position_ids) or forward(input_ids); give the others a default"


class Calling(nn.Module):
    """A model as a function to logits of ids and positions [1, T], and of a tensor as long as its cache.

    The parameter named ``input_ids`` is the token ids, else the first one; positions and cache are told by
    their names. A model that has no batch dim (``flat``) is given [T]; without ``cached`` it gets
    no cache.
    """

    def __init__(self, model: nn.Module, flat: bool = False, cached: bool = True) -> None:
        super().__init__()
        self.model, self.flat = model, flat
        found = inspect.signature(model.forward).parameters
        named = [p.name for p in found.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not named:  # it passes on whatever it gets
            named = ["input_ids", POSITIONS[0], CACHES[0]]
        self.ids = "input_ids" if "input_ids" in named else named[0]
        self.positions = next((name for name in POSITIONS if name in named), None)
        self.uses_cache = "use_cache" in named
        self.caches = [name for name in CACHES if name in named] if cached and from_library(model) else []
        known = {self.ids, self.positions, *(CACHES if from_library(model) else ())}
        if any(hasattr(m, "create_position_ids_from_input_ids") for m in model.modules()):
            self.positions = None  # it numbers the ids itself, in its own way
        for name in named:
            if name not in known and name in found and found[name].default is inspect.Parameter.empty:
                raise TraceError(f"{type(model).__name__}.forward wants `{name}`", hint=HINT)

    def forward(self, input_ids: Tensor, position_ids: Tensor, past: Tensor) -> Tensor:
        from irloom.frontends.hf.cache import probing_cache

        torch._check(input_ids.shape[1] == position_ids.shape[1])
        extra: dict[str, Any] = {"use_cache": False} if self.uses_cache else {}
        for name in self.caches:
            if (cache := probing_cache(self.model, name, past.shape[0])) is not None:
                extra |= {name: cache, "use_cache": True}
        return self.logits(input_ids, position_ids, **extra)

    def alone(self, ids: Tensor) -> Tensor:
        """The model's own logits f32[T, V] of one sequence of ids [T], without a cache.

        A model of the library is given the mask that ``generate`` gives it: there are some of 5.17 that are
        causal only then.
        """
        takes = inspect.signature(self.model.forward).parameters
        plain: dict[str, Any] = {"use_cache": False} if self.uses_cache else {}
        if "attention_mask" in takes and hasattr(self.model, "generate"):
            plain["attention_mask"] = torch.ones_like(ids)[None]
        wanted = [name for name, p in takes.items() if p.default is inspect.Parameter.empty]
        positions = torch.arange(len(ids), device=ids.device)[None] if self.positions in wanted else None
        return self.logits(ids[None], positions, **plain)[0].float()

    def logits(self, ids: Tensor, positions: Tensor | None, **extra: Any) -> Tensor:
        """Logits [1, T, V], whatever the model wraps them in; without ``positions`` it counts itself."""
        given = {self.ids: ids}
        if self.positions and positions is not None:
            given[self.positions] = positions
        if self.flat:
            given = {name: x[0] for name, x in given.items()}
        out = self.model(**given, **extra)
        out = out if isinstance(out, Tensor) else _among(out)
        return out[None] if out.ndim == 2 else out


def _among(outputs: Any) -> Tensor:
    """The logits of several outputs: those of that name, else the first."""
    if isinstance(outputs, Mapping):
        return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


def from_library(model: nn.Module) -> bool:
    """Whether ``model`` is one of the library's, also by remote code, and takes a cache of the library."""
    return hasattr(model, "base_model_prefix")


def is_flat(model: nn.Module) -> bool:
    """Whether ``model`` takes ids without a batch dim: it fails on [1, T], and not on [T].

    Nothing is computed. Raises ``TraceError`` where it gives logits of some tokens only.
    """
    batched = _shape(Calling(model))
    shape = batched or _shape(Calling(model, flat=True))
    if shape is not None and (len(shape) != 3 or shape[1] != _PROBED):
        raise TraceError(
            f"{type(model).__name__} gives {list(shape)} for {_PROBED} tokens, not logits of every token",
            hint="irloom itself keeps only the last of each sequence, where only that is needed",
        )
    return batched is None and shape is not None


_PROBED = 5


def _shape(calling: Calling) -> tuple[int, ...] | None:
    """Dims of the logits of a few tokens, or None where the call fails."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = next((p.device for p in calling.model.parameters()), torch.device("cpu"))
    try:
        with quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            ids = torch.zeros(1, _PROBED, dtype=torch.int64, device=device)
            return tuple(calling.logits(ids, ids.clone()).shape)
    except Exception:
        return None  # tracing says what is wrong, and where
