"""The probing cache: a cache whose every write is an op in the graph, so that state is found by dataflow."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from irloom.frontends.hf.indexer import IndexerKeys
from irloom.ir.errors import TraceError


def probing_cache(model: nn.Module, argument: str, past: int) -> ProbingCache | None:
    """A probing cache of ``past`` tokens for a model's ``argument``, of the kind that its modules ask for.

    None where they ask for something that is no cache of the library: what such a model keeps is state of its
    own, and it computes without.
    """
    for module in model.modules():
        parameter = inspect.signature(module.forward).parameters.get(argument)
        names = re.findall(r"\w+", str(parameter.annotation)) if parameter else []
        scope = vars(sys.modules[type(module).__module__])
        kinds = [kind for name in names if isinstance(kind := scope.get(name), type)]
        own = [kind for kind in kinds if kind.__module__ == scope["__name__"]]
        if own and not issubclass(own[0], Cache):
            return None
        if own:
            return type(f"Probing{own[0].__name__}", (ProbingCache, own[0]), {})(past)
    return ProbingCache(past)


class LayersRead(TraceError):
    """A model looks into the layers of its cache; it may still compute without a cache."""


class NoLayers:
    """The layers of a cache, none of which holds anything yet; what one holds is no dataflow."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, layer: int) -> NoReturn:
        raise LayersRead("what a cache layer holds (`past_key_values.layers`) is read by the model itself")


class ProbingCache(Cache):
    """Holds ``past`` tokens, a symbol, and shows none of them.

    Queries then have T tokens and keys ``past + T``: no model can confuse the two, and whatever a model
    computes from the length of the cache shows up in the graph as a use of ``past``.
    """

    def __init__(self, past: int) -> None:
        self.past = past

    def __setattr__(self, name: str, value: Any) -> None:
        """A model may note things on its cache, not change what it answers (one of 5.17 binds methods that
        read its layers).
        """
        if not callable(getattr(type(self), name, None)):
            super().__setattr__(name, value)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.irloom.kv_store(key_states, value_states, layer_idx, self.past)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        return 0

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """No layer says what it is: masks come from the config."""
        return []

    @property
    def is_linear(self) -> list[bool]:
        return []

    @property
    def is_dummy(self) -> list[bool]:
        return []

    @property
    def max_batch_size(self) -> int:
        return 1

    @property
    def max_cache_len(self) -> int:
        return -1

    @property
    def layers(self) -> NoLayers:
        return NoLayers()

    def update_conv_state(self, conv_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """What a convolution reads: of what it keeps nothing shows, so this step's tokens alone."""
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return recurrent_states

    def get_conv_state(self, *_: Any, **__: Any) -> None:
        """None: the recurrent ops of the IR carry their states themselves."""

    def get_recurrent_state(self, *_: Any, **__: Any) -> None:
        """None, as of a convolution."""

    def has_previous_state(self, *_: Any, **__: Any) -> bool:
        return False

    def is_recording_past(self, *_: Any, **__: Any) -> bool:
        return False

    def update_indexer(self, indexer_keys: Tensor, *_: Any, **__: Any) -> Any:
        """All keys of an indexer, which exist only as what is computed of them."""
        return IndexerKeys(indexer_keys)
