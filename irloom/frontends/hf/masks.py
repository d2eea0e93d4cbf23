"""Attention masks as one op: what the library's mask functions mean, read from their closures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskKind:
    """``causal``, ``sliding`` (the last ``size`` tokens), ``chunked`` (blocks of ``size``) or ``full``."""

    name: str
    size: int = 0


def mask_op(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention_mask: Tensor | None = None,
    **rest: Any,
) -> Tensor | None:
    """Registered with the library as a mask implementation: one op in place of a dense [1, 1, T, S] tensor.

    The result is additive, as models that add a mask themselves expect. Padding masks are dropped: packed
    sequences have no padding. A mask of no known kind is computed in the graph as the library does, and read
    there from its values (``spelled``).
    """
    kind = classify(mask_function)
    if kind is None:
        from transformers.masking_utils import eager_mask

        asked = {**rest, "dtype": dtype, "device": device, "allow_is_causal_skip": False}
        return eager_mask(batch_size, q_length, kv_length, mask_function=mask_function, **asked)
    return torch.ops.irloom.attention_mask(
        q_length, kv_length, kind.name, kind.size, dtype, torch.device(device)
    )


def classify(mask_function: Callable[..., Any]) -> MaskKind | None:
    """What a mask function of the library attends to, or None when it is none of the known kinds."""
    from transformers import masking_utils as library

    if mask_function is library.causal_mask_function:
        return MaskKind("causal")
    if mask_function is library.bidirectional_mask_function:
        return MaskKind("full")
    held = dict(
        zip(
            mask_function.__code__.co_freevars,
            (cell.cell_contents for cell in mask_function.__closure__ or ()),
            strict=True,
        )
    )
    match mask_function.__qualname__.partition(".")[0]:
        case "and_masks":
            return _all_of([classify(f) for f in held["mask_functions"]])
        case "sliding_window_overlay":
            return MaskKind("sliding", int(held["sliding_window"]))
        case "chunked_overlay":
            return MaskKind("chunked", int(held["chunk_size"]))
        case "packed_sequence_mask_function" | "padding_mask_function":
            return MaskKind("full")  # padding and packing say nothing about one sequence
        case "remap_positions_for_packed_sequence" | "add_offsets_to_mask_function":
            return classify(held["mask_function"])
        case _:
            return None


def _all_of(parts: list[MaskKind | None]) -> MaskKind | None:
    """The conjunction of masks: the library always joins a window or a chunk with the causal mask."""
    if any(part is None for part in parts):
        return None
    kinds = {part for part in parts if part is not None}
    narrow = kinds - {MaskKind("causal"), MaskKind("full")}
    if len(narrow) > 1:
        return None
    if narrow:
        return narrow.pop() if MaskKind("causal") in kinds else None
    return MaskKind("causal") if MaskKind("causal") in kinds else MaskKind("full")
