"""Which layers and which names an option is for: ``lm_head``, ``0-3``, ``0-3,-1:mlp.*down_proj``.

Layers come first and count from 0; ``-1`` is the last, ``28-`` all from 28 on. A name is a pattern of
``fnmatch`` that may stand anywhere in a module path, a tensor's or a parameter's name, or an op. What has
both wants both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from irloom.ir.errors import PipelineError
from irloom.ir.graph import Func, Module, Node, Param
from irloom.ir.weight_expr import offsets, tensor_names

from .layers import Sites, split_loc
from .near_miss import NearMiss
from .sample import layer_of

_SPAN = r"\s*(-\d+|\d+(?:-\d*)?)\s*"
_LAYERS = re.compile(f"{_SPAN}(?:,{_SPAN})*")


@dataclass(frozen=True)
class Selection:
    """Spans of layers, both ends included and None for the last layer, and a pattern.

    No spans are all layers and what stands in none, no pattern is every name.

    >>> Selection.of("0-1,-1: down_proj").takes(["model.layers.7.mlp.down_proj"], 7, 8)
    True
    >>> Selection.of("0-1").takes(["lm_head"], None, 8)
    False
    """

    spans: tuple[tuple[int, int | None], ...] = ()
    pattern: str = ""

    @staticmethod
    def of(text: str) -> Selection:
        """Read the text form; ``PipelineError`` for an empty one, which would be everything."""
        if not text.strip():
            raise PipelineError(f"{text!r} is no layer and no name", hint="'*' is everything, () nothing")
        head, colon, tail = text.partition(":")
        if not _LAYERS.fullmatch(head):
            return Selection((), text.strip())
        return Selection(
            tuple(_span(part.strip()) for part in head.split(",")), tail.strip() if colon else ""
        )

    def takes(self, names: Iterable[str], layer: int | None, count: int) -> bool:
        """Whether it is for something of these names in layer ``layer`` of ``count``; None is in no layer."""
        if self.spans and (layer is None or not any(_within(layer, span, count) for span in self.spans)):
            return False
        return not self.pattern or any(fnmatchcase(name, f"*{self.pattern}*") for name in names)


def _span(text: str) -> tuple[int, int | None]:
    if text.startswith("-"):
        return int(text), int(text)
    first, dash, last = text.partition("-")
    return int(first), (int(last) if last else None) if dash else int(first)


def _within(layer: int, span: tuple[int, int | None], count: int) -> bool:
    first, last = (end if end is None or end >= 0 else count + end for end in span)
    return (first or 0) <= layer and (last is None or layer <= last)


@dataclass
class Layers:
    """Which layers a module has, and which of them its functions and values are of."""

    calls: dict[str, list[int | None]] = field(default_factory=dict[str, "list[int | None]"])
    sites: Sites = field(default_factory=Sites)
    count: int = 0

    @staticmethod
    def of(m: Module) -> Layers:
        """Read them off the calls of ``main``; of a flat one off names, as ``outline`` does."""
        out = Layers()
        for call, index, _ in m.calls():
            known = out.calls.setdefault(call.callee, [])
            if index not in known:
                known.append(index)
        for f in m.funcs.values():
            if f.name not in out.calls:
                for path in (*(split_loc(n.loc)[0] for n in f.nodes), *_tensors(f)):
                    out.sites.add(path)
        numbers = [i for known in out.calls.values() for i in known if i is not None]
        numbers += [i for seen in out.sites.seen.values() if len(seen) > 1 for i in seen]
        out.count = max(numbers, default=-1) + 1
        return out

    def indices(self, f: Func) -> list[int | None]:
        """The layers that a function is called for; None where it is none, 0 where nothing calls it."""
        return self.calls.get(f.name) or [layer_of(f)]

    def number(self, index: int | None, names: Iterable[str]) -> int | None:
        """The layer of something with these names in a function that is called for layer ``index``."""
        if index is not None:
            return index
        return next((site.number for name in names if (site := self.sites.of(name))), None)


Chosen = TypeVar("Chosen")


@dataclass
class Choices(Generic[Chosen]):
    """What options choose for something, by rules of which the first that takes it counts."""

    layers: Layers
    rules: Sequence[tuple[str, Chosen]]
    default: Chosen
    used: set[str] = field(default_factory=set[str])

    def of(self, names: Sequence[str], index: int | None) -> Chosen:
        """The choice for something of these names in a function that is called for layer ``index``."""
        rule = self.rule(names, index)
        return rule[1] if rule else self.default

    def rule(self, names: Sequence[str], index: int | None) -> tuple[str, Chosen] | None:
        """The rule that chooses; None where none does and the default holds."""
        layer = self.layers.number(index, names)
        for text, chosen in self.rules:
            if Selection.of(text).takes(names, layer, self.layers.count):
                self.used.add(text)
                return text, chosen
        return None

    def unused(self, what: str) -> list[NearMiss]:
        """Rules that were the first for nothing: most likely a name is misspelled."""
        texts = dict.fromkeys(text for text, _ in self.rules)
        return [NearMiss("main", f"{text!r} chooses no {what}") for text in texts if text not in self.used]


def _tensors(f: Func) -> list[str]:
    layered = (p.weight for p in f.weights if p.weight is not None and not offsets(p.weight))
    return [name for expr in layered for name in tensor_names(expr)]


def names_of(p: Param, readers: Iterable[Node], index: int | None) -> list[str]:
    """What a pattern may call a weight: its name, its tensors, the modules that read it."""
    tensors = tensor_names(p.weight, index) if p.weight is not None else []
    return [p.name, *(split_loc(n.loc)[0] for n in readers), *tensors]
