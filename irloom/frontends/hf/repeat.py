"""Layers that repeat are run once in a capture: the others leave a marker where they would have run.

A layer is an entry of an outermost ``ModuleList``. Two are alike when their *fingerprints* are equal: class,
attributes but for the layer's number, shapes of parameters and buffers, submodules, and what lists of the
config say at their number. Of layers that are alike and called with arguments that are alike, the first and
the last run; ``stamp.py`` puts copies of the first where the markers are, once it has found that the
last one is such a copy too.

The model's own loop over its layers runs as it is, so each layer gets its own masks, rotary tables and
residuals as operands of its marker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

NUMBER = re.compile(r"(layer|block)_?(idx|id|index|number|num|i)")
"""Names of attributes that hold a layer's number."""

FEWEST = 3
"""Of fewer layers that are alike, all run: the first and the last."""

OWN = frozenset(vars(nn.Module())) - {"training"}


class Unlike(Exception):
    """Layers do more than their operands and results show, so each has to run."""


@dataclass(frozen=True)
class Layer:
    """A layer of the model: its path, its fingerprint, and the numbers that its modules bear, in order."""

    path: str
    kind: Hashable
    numbers: tuple[int, ...]
    last: bool = False


@dataclass(frozen=True)
class Run:
    """A layer that ran: what it gave, with its tensors apart."""

    layer: Layer
    number: int
    outputs: list[Tensor]
    leaves: list[Any]
    spec: pytree.TreeSpec


@dataclass
class Repeats:
    """The calls of layers in one capture: ``calls`` by number, ``marked`` those that did not run."""

    layers: dict[int, Layer]
    calls: list[Layer] = field(default_factory=list[Layer])
    marked: dict[int, int] = field(default_factory=dict[int, int])
    runs: dict[Hashable, Run] = field(default_factory=dict[Hashable, Run])
    inside: bool = False

    def call(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run ``layer``, or mark where it would have run, and give what it gives."""
        number = len(self.calls)
        self.calls.append(layer)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = list({id(x): x for x in leaves if isinstance(x, Tensor)}.values())
        key = (layer.kind, spec, tuple(_described(x, tensors) for x in leaves))
        run = self.runs.get(key)
        if run is not None and not layer.last and renumbered(run.layer, layer) is not None:
            self.marked[number] = run.number
            outputs = torch.ops.irloom.layer_again(tensors, run.outputs, number)
            return pytree.tree_unflatten(_filled(run.leaves, outputs), run.spec)
        inner = dict(zip(map(id, tensors), torch.ops.irloom.layer_enter(tensors, number), strict=True))
        args, kwargs = pytree.tree_unflatten([inner.get(id(x), x) for x in leaves], spec)
        self.inside = True
        try:
            given = forward(*args, **kwargs)
        finally:
            self.inside = False
        out, out_spec = pytree.tree_flatten(given)
        before = [inner.get(id(x), x) for x in leaves]
        after = pytree.tree_leaves((args, kwargs))
        if len(after) != len(before) or any(a is not b for a, b in zip(after, before, strict=True)):
            raise Unlike(f"{layer.path} writes into a list or dict among its arguments")
        outputs = torch.ops.irloom.layer_leave([x for x in out if isinstance(x, Tensor)], number)
        if outputs and all(_literal(x) for x in out):
            self.runs.setdefault(key, Run(layer, number, outputs, out, out_spec))
        return pytree.tree_unflatten(_filled(out, outputs), out_spec)


@contextlib.contextmanager
def marked(model: nn.Module, repeats: Repeats) -> Iterator[None]:
    """Within, calls of the layers of ``model`` go through ``Repeats.call``."""
    classes = {type(m) for m in model.modules() if id(vars(m)) in repeats.layers}
    before = {cls: vars(cls).get("forward") for cls in classes}
    try:
        for cls in classes:
            cls.forward = _through(repeats, cls.forward)
        yield
    finally:
        for cls, forward in before.items():
            if forward is None:
                del cls.forward
            else:
                cls.forward = forward


def _through(repeats: Repeats, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def through(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        layer = repeats.layers.get(id(vars(self)))  # what stands for a module while it is exported shares it
        if layer is None or repeats.inside:
            return forward(self, *args, **kwargs)
        return repeats.call(layer, functools.partial(forward, self), args, kwargs)

    return through


def find_layers(model: nn.Module) -> dict[int, Layer]:
    """The layers of ``model`` that have at least two others alike, by the identity of their ``vars``."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    describe = _Describe({})
    found: dict[int, Layer] = {}
    inside: tuple[str, ...] = ()
    for path, entries in model.named_modules():
        if not isinstance(entries, nn.ModuleList) or path.startswith(inside):
            continue
        alike: dict[Hashable, list[tuple[nn.Module, Layer]]] = defaultdict(list)
        shared = {k for k, n in Counter(map(id, entries)).items() if n > 1}
        for n, module in enumerate(entries):
            if id(module) in shared:
                continue
            said = tuple(_said(c, n, len(entries), describe) for c in configs.values())
            kind, numbers = describe.layer(module)
            alike[path, kind, said].append((module, Layer(f"{path}.{n}", (path, kind, said), numbers)))
        groups = [group for group in alike.values() if len(group) >= FEWEST]
        for group in groups:
            last = group[-1][1]
            found |= {id(vars(m)): replace(x, last=x is last) for m, x in group}
        if groups:
            inside = (*inside, f"{path}.")
    return found


def renumbered(one: Layer, other: Layer) -> dict[int, int] | None:
    """What each number in ``one`` is in ``other``; None where that is not clear."""
    out: dict[int, int] = {}
    for a, b in zip(one.numbers, other.numbers, strict=True):
        if out.setdefault(a, b) != b:
            return None
    return out


def _said(config: Any, number: int, count: int, describe: _Describe) -> Hashable:
    """What the lists of a config with an entry per layer have for one."""
    rows = _fields(config).items()
    return tuple((k, describe(v[number])) for k, v in rows if isinstance(v, list) and len(v) == count)


def _described(leaf: Any, tensors: list[Tensor]) -> Hashable:
    """An argument of a layer as what must be alike in another call."""
    if isinstance(leaf, Tensor):
        place = next(i for i, x in enumerate(tensors) if x is leaf)
        return ("tensor", place, leaf.dtype, str(leaf.shape), str(leaf.stride()))
    if isinstance(leaf, torch.SymInt):
        return ("size", str(leaf))
    return (type(leaf), leaf) if isinstance(leaf, int | float | str | None) else (type(leaf), id(leaf))


def _literal(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, Tensor | torch.SymInt | int | float | str)


def _filled(leaves: list[Any], tensors: list[Tensor]) -> list[Any]:
    """``leaves`` with other tensors in place of its own."""
    others = iter(tensors)
    return [next(others) if isinstance(x, Tensor) else x for x in leaves]


@dataclass
class _Describe:
    """Values as what can be compared; ``texts`` keeps that of each config."""

    texts: dict[int, str]

    def layer(self, layer: nn.Module) -> tuple[Hashable, tuple[int, ...]]:
        """The fingerprint of a layer, and the numbers left out of it."""
        parts: list[Hashable] = []
        numbers: list[int] = []
        for path, module in layer.named_modules(remove_duplicate=False):
            facts: list[Hashable] = []
            for name, value in vars(module).items():
                if type(value) is int and NUMBER.fullmatch(name):
                    numbers.append(value)
                elif name not in OWN:
                    facts.append((name, self(value)))
            held = [*module._parameters.items(), *module._buffers.items()]
            shapes = [(k, None if x is None else (x.shape, x.dtype)) for k, x in held]
            parts.append((path, type(module), tuple(facts), tuple(shapes)))
        return tuple(parts), tuple(numbers)

    def __call__(self, value: Any) -> Hashable:
        match value:
            case None | bool() | int() | float() | str() | bytes() | complex() | Enum():
                return (type(value), value)
            case torch.dtype() | torch.device() | type() | FunctionType():
                return value
            case MethodType():
                return ("method", value.__func__, type(value.__self__))
            case functools.partial():
                return ("partial", self(value.func), self(value.args), self(value.keywords))
            case list() | tuple():
                return (type(value), *map(self, value))
            case set() | frozenset():
                return (type(value), frozenset(map(self, value)))
            case Mapping():
                return (type(value), *((self(k), self(v)) for k, v in value.items()))
            case Tensor() if not value.is_meta and value.numel() <= 4096:
                return ("tensor", value.dtype, value.shape, repr(value.tolist()))
            case _ if hasattr(value, "to_dict"):
                if id(value) not in self.texts:
                    said = json.dumps(value.to_dict(), sort_keys=True, default=repr)
                    self.texts[id(value)] = said
                return (type(value), self.texts[id(value)])
            case _:
                return (type(value), id(value))


def _fields(config: Any) -> Mapping[str, Any]:
    """What a config says, be it an object or a mapping."""
    return config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
