"""Rotary embeddings that choose frequencies by a text's length: a program has those of short texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

_CHOOSING = ("longrope", "dynamic")


@contextlib.contextmanager
def settled_rotation(model: nn.Module) -> Iterator[None]:
    """Within, frequencies stay as constructors made them: right up to the original length of the model.

    The library picks others once a text is longer, by looking at values, and leaves cached keys as they are.
    A program serves texts up to the original length (see ``facts.py``), for which both are the same.
    """
    found: list[tuple[Any, Any]] = [(m, m.rope_type) for m in model.modules() if hasattr(m, "rope_type")]
    try:
        for module, kinds in found:
            if isinstance(kinds, dict):
                module.rope_type = {layer: _settled(kind) for layer, kind in kinds.items()}
            else:
                module.rope_type = _settled(kinds)
        yield
    finally:
        for module, kinds in found:
            module.rope_type = kinds


def _settled(kind: Any) -> Any:
    return "default" if isinstance(kind, str) and any(k in kind for k in _CHOOSING) else kind
