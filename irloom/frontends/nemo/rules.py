"""Rules from Megatron's names to the library's: each takes one tensor and gives one or several.

A rule is a line of a family's table: a canonical name with ``{i}`` for a layer, ``{e}`` for an expert and
``{s}`` for ``weight`` or ``bias``, names of the library, and how the one becomes the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from irloom.frontends.nemo.laid import Laid, joined
from irloom.frontends.nemo.model import Model
from irloom.ir.elem import Elem
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Made:
    """A tensor of the library: laid out from the files, then perhaps transposed, or with ``plus`` added."""

    laid: Laid
    transposed: bool = False
    plus: float = 0.0

    @property
    def dims(self) -> tuple[int, ...]:
        return self.laid.dims[::-1] if self.transposed else self.laid.dims

    @property
    def elem(self) -> Elem:
        return self.laid.elem

    def stored(self) -> Stored | None:
        return None if self.transposed or self.plus else self.laid.stored()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of what ``read`` returns, without reading the others."""
        if self.transposed:
            return self.read()[start:stop]
        return replace(self, laid=self.laid.rows(start, stop)).read()

    def read(self) -> torch.Tensor:
        tensor = self.laid.read()
        if self.plus:
            tensor = (tensor.float() + self.plus).to(tensor.dtype)
        return tensor.t().contiguous() if self.transposed else tensor


Make = Callable[[Laid, Model], Sequence[Made]]


@dataclass(frozen=True)
class Rule:
    """``source`` becomes ``targets`` by ``make``."""

    source: str
    targets: tuple[str, ...]
    make: Make


def rule(source: str, *targets: str, make: Make | None = None) -> Rule:
    return Rule(source, targets, make or same)


def same(tensor: Laid, model: Model) -> list[Made]:
    return [Made(tensor)]


def norm(tensor: Laid, model: Model) -> list[Made]:
    """The weight of a norm that multiplies by it; Megatron may store it less one."""
    return [Made(tensor, plus=1.0 if model.settings.zero_centered else 0.0)]


def centered_norm(tensor: Laid, model: Model) -> list[Made]:
    """The weight of a norm that multiplies by one plus it."""
    return [Made(tensor, plus=0.0 if model.settings.zero_centered else -1.0)]


def words(tensor: Laid, model: Model) -> list[Made]:
    """Rows of words, without those that only fill up."""
    return [Made(tensor.rows(0, model.vocab))]


def halves(tensor: Laid, model: Model) -> list[Made]:
    """Gates, then values."""
    return [Made(half) for half in tensor.split([tensor.dims[0] // 2] * 2)]


def heads(tensor: Laid, model: Model) -> list[Made]:
    """Queries, keys and values, which Megatron stores group by group: its queries, a key, a value."""
    return [Made(part) for part in qkv(tensor, model)]


def fused_heads(tensor: Laid, model: Model) -> list[Made]:
    """All queries, then all keys, then all values, in one tensor."""
    return [Made(joined(qkv(tensor, model)))]


def fused_heads_transposed(tensor: Laid, model: Model) -> list[Made]:
    return [Made(joined(qkv(tensor, model)), transposed=len(tensor.dims) == 2)]


def transposed(tensor: Laid, model: Model) -> list[Made]:
    """A product's weight as GPT-2 has it: inputs are rows."""
    return [Made(tensor, transposed=len(tensor.dims) == 2)]


def qkv(tensor: Laid, model: Model) -> list[Laid]:
    dim, groups = model.head_dim, model.settings.groups
    return tensor.grouped(groups, [model.settings.heads // groups * dim, dim, dim])


def apply(rules: Iterable[Rule], model: Model) -> dict[str, Made]:
    """Every tensor of the model under the library's names; an error names one that no rule is for."""
    table = [(_pattern(r.source), r) for r in rules]
    made: dict[str, Made] = {}
    for name, tensor in model.tensors.items():
        found = next(((m, r) for pattern, r in table if (m := pattern.fullmatch(name))), None)
        if found is None:
            raise CheckpointError(
                f"{model.path}: it is not known what `{name}` {list(tensor.dims)} is in a model with"
                f" {model.describe()}",
                hint="irloom uses every tensor of a checkpoint or reads none; see docs/nemo.md",
            )
        match, r = found
        targets = [target.format(**match.groupdict()) for target in r.targets]
        try:
            made.update(zip(targets, r.make(tensor, model), strict=True))
        except CheckpointError as error:
            error.at(f"in `{name}` of {model.path}")
            raise
    return made


def _pattern(source: str) -> re.Pattern[str]:
    text = re.escape(source)
    for field, values in (("i", r"\d+"), ("e", r"\d+"), ("s", "weight|bias")):
        text = text.replace(rf"\{{{field}\}}", f"(?P<{field}>{values})", 1)
    return re.compile(text)
