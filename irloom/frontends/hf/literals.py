"""Tensors that a model makes from Python numbers keep their values in a capture without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

MAKES = {torch.tensor, torch.as_tensor, torch.asarray}


class Literals(TorchFunctionMode):
    """Within, ``torch.tensor(numbers, device="meta")`` is made where it has values, then moved.

    The graph then holds the values as a constant, and the move as an op that means nothing to the IR.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        device = options.get("device")
        if func in MAKES and device is not None and torch.device(device).type == "meta":
            del options["device"]
            return func(*args, **options).to(device)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (args[0], tuple(_index(item) for item in args[1]))
        return func(*args, **options)


def _index(item: Any) -> Any:
    """A list of numbers with their values: as a list it would become a tensor without them."""
    if not isinstance(item, list) or not item or not all(type(i) is int for i in item):
        return item
    (first,) = item if len(item) == 1 else (None,)
    return torch.tensor(item) if first is None else slice(first, first + 1 or None)
