"""A checkpoint with an adapter in it: ``W + scale * B @ A``, computed as the weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from irloom.frontends.hf.recipes import MappedCheckpoint, listed
from irloom.frontends.peft.adapter import Adapter, Delta
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.weights import Tensor, expression_blocks

if TYPE_CHECKING:
    from irloom.ir.quantized import QuantizedTensor
    from irloom.ir.safetensors import Stored


def merged(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """``base`` with an adapter merged in; ``CheckpointError`` names what has no place or other dims.

    An adapter names modules as its training saw them: as the library's model does, or as the file does, where
    the library merges what the file stores apart (the experts of older releases).
    """
    wanted = list(dict.fromkeys([*adapter.deltas, *adapter.replaced]))
    inner = [n for n in wanted if n not in set(base.names())]
    if not isinstance(base, MappedCheckpoint):
        return MergedCheckpoint(base, adapter, wanted)
    known = set(base.raw.names())
    if lost := [name for name in inner if name not in known]:
        raise CheckpointError(
            f"{adapter.path}: the model has no {listed(lost)}",
            hint="is it an adapter of another model?",
        )
    below = base.over(MergedCheckpoint(base.raw, adapter, inner)) if inner else base
    outer = [name for name in wanted if name not in inner]
    _untied(base, adapter, outer)
    return MergedCheckpoint(below, adapter, outer) if outer else below


def _untied(base: MappedCheckpoint, adapter: Adapter, names: list[str]) -> None:
    for name in names:
        twins = [n for n in base.names() if n != name and base.recipe(n) is base.recipe(name)]
        if twins:
            raise CheckpointError(
                f"{adapter.path}: it changes `{name}`, which is tied to {listed(twins)}",
                hint='store both in the model and set "tie_word_embeddings": false in its config.json',
            )


class MergedCheckpoint:
    """``base`` with the tensors ``names`` changed by ``adapter``: some rows at a time, rounded once."""

    def __init__(self, base: Checkpoint, adapter: Adapter, names: Sequence[str]) -> None:
        self.base, self.adapter = base, adapter
        self.deltas = {n: adapter.deltas[n] for n in names if n in adapter.deltas}
        self.replaced = {n: adapter.replaced[n] for n in names if n in adapter.replaced}
        for name in names:
            self._check(name)

    def _check(self, name: str) -> None:
        wanted, tensors = self.base.dims(name), self.adapter.tensors
        found = [tensors.dims(self.replaced[name])] if name in self.replaced else []
        if delta := self.deltas.get(name):
            out, inner = tensors.dims(delta.b)[0], tensors.dims(delta.a)[1]
            each = [(out, inner), (inner, out)] if delta.experts > 1 else [(out, inner)]
            stacked = [(delta.experts, *d) if delta.experts > 1 else d for d in each]
            found.append(wanted if wanted in stacked else stacked[0][::-1] if delta.turned else stacked[0])
        if wrong := [dims for dims in found if dims != wanted]:
            raise CheckpointError(
                f"{self.adapter.path}: its `{name}` is {list(wrong[0])}, but the model's is {list(wanted)}",
                hint="is it an adapter of another model?",
            )

    @property
    def path(self) -> Path:
        return self.base.path

    def names(self) -> Sequence[str]:
        return self.base.names()

    def dims(self, name: str) -> tuple[int, ...]:
        return self.base.dims(name)

    def elem(self, name: str) -> Elem:
        return self.base.elem(name)

    def read(self, name: str) -> torch.Tensor:
        if not self._changes(name):
            return self.base.read(name)
        out = torch.empty(self.dims(name), dtype=self.elem(name).torch)
        done = 0
        for block in self.blocks(name):
            out[done : done + len(block)] = block
            done += len(block)
        return out

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        at, _, _ = rows.indices(self.dims(name)[0])
        delta, dtype = self.deltas.get(name), self.elem(name).torch
        own = self.replaced.get(name)
        source = self.adapter.tensors if own else self.base
        for block in expression_blocks(Tensor(own or name), source, rows):
            changed = block if delta is None else self._added(block, delta, slice(at, at + len(block)))
            yield changed.to(dtype)
            at += len(block)

    def _added(self, block: torch.Tensor, delta: Delta, rows: slice) -> torch.Tensor:
        """Some rows of a weight and the change of those rows, in f32."""
        a = self.adapter.tensors.read(delta.a).float()
        b = self.adapter.tensors.read(delta.b).float()
        if delta.experts > 1:
            a = a.unflatten(0, (delta.experts, -1))[rows]
            b = b.unflatten(1, (-1, delta.experts))[:, :, rows]
            change = torch.einsum("ore,eri->eoi", b, a)
            change = change if change.shape == block.shape else change.transpose(1, 2)
            return block.float() + change * delta.scale
        change = a.t()[rows] @ b.t() if delta.turned else b[rows] @ a
        changed = block.float() + change * delta.scale
        if delta.magnitude is None:
            return changed
        norms = self.adapter.tensors.read(delta.magnitude).float()[rows]
        return changed * (norms / changed.norm(dim=1)).unsqueeze(1)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None if self._changes(name) else self.base.read_quantized(name, quant)

    def stored(self, name: str) -> Stored | None:
        return None if self._changes(name) else self.base.stored(name)

    def _changes(self, name: str) -> bool:
        return name in self.deltas or name in self.replaced
