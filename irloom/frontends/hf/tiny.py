"""A tiny config with the structure of a given one, for checking an architecture without its weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irloom.frontends.hf.tiny_sizes import HEAD_DIM, ORIGINAL, Field, small
from irloom.ir.errors import TraceError

LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers",
    "num_blocks",
)  # fmt: skip
"""Fields that count layers, the likeliest first."""

ROPES = ("rope_parameters", "rope_scaling")
MOST_LAYERS = 6
NOT_GIVEN = {
    "transformers_version", "architectures", "dtype", "torch_dtype", "model_type", "id2label", "label2id",
    "problem_type", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
    "quantization_config", "name_or_path",
}  # fmt: skip
"""Fields that say nothing about the structure, and that a constructor need not take."""

Fields = Mapping[str, Any]
ABSENT = ...
"""As the value of a changed field: leave it to the constructor."""


@dataclass(frozen=True)
class Change:
    """What to set otherwise in the tiny config of a model type, and how many layers it should have.

    Fields of a sub-config are in a mapping of their own; a mapping for a dict changes entries of it.
    """

    fields: Fields
    layers: int | None = None


Changes = Mapping[str, Change]
"""By model type, so that they hold for sub-configs too."""


def with_layers(config: Any, count: int) -> Any:
    """A copy of ``config`` with its first ``count`` layers."""
    return _keep(config, list(range(min(count, _layers(config)))))


def tiny_config(config: Any, changes: Changes | None = None, *, thorough: bool = False) -> Any:
    """A config of the same class with small sizes and one layer per kind of layer, at least two; flags stay.

    ``thorough`` asks for more than the config shows: fewer key-value heads than heads, and kinds of layers
    that come twice. Whatever a constructor checks is checked again: a failure is a ``TraceError``.
    """
    try:
        return type(config)(**_Shrink(changes or {}, thorough).fields(config))
    except Exception as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(
            f"no tiny {type(config).__name__} to check the architecture with:"
            f" {type(error).__name__}: {' '.join(str(error).split())}",
            hint="trace without the check: trace_hf(..., check=False)",
        ) from error


@dataclass(frozen=True)
class _Shrink:
    changes: Changes
    thorough: bool

    def fields(self, config: Any, more: Fields | None = None) -> dict[str, Any]:
        """What to construct the tiny config from: fields that are not the class's default, or not small."""
        change = self.changes.get(getattr(type(config), "model_type", ""), Change({}))
        changed = {**change.fields, **(more or {})}
        own, usual, known = _own(config), _usual(type(config)), _known(type(config))
        layers = _Layers.of(own, change.layers, self.thorough)
        subs: Any = getattr(config, "sub_configs", None) or {}
        out: dict[str, Any] = {}
        for name, value in own.items():
            if name in subs:
                if value is not None and changed.get(name, {}) is not None:
                    out[name] = self.sub(value, changed.get(name, {}))
            elif name in LAYERS and layers.total is not None:
                out[name] = len(layers.kept)
            elif layers.each(name, value):
                out[name] = [value[i] for i in layers.kept]
            elif name in ROPES and isinstance(value, dict):
                out[name] = _small_rope(value)
            elif name in known or name not in usual:  # what no constructor takes, it computes
                size = small(Field(name, value, own, self.thorough)) if name in known else value
                if size != value or name not in usual or usual[name] != value:
                    out[name] = size
        return _changed(out, own, {k: v for k, v in changed.items() if k not in subs})

    def sub(self, config: Any, changed: Fields) -> dict[str, Any]:
        kind = getattr(type(config), "model_type", "")
        fields = self.fields(config, changed)
        return {**fields, "model_type": kind} if kind else fields


def _changed(fields: dict[str, Any], own: Fields, changes: Fields) -> dict[str, Any]:
    for name, value in changes.items():
        if value is ABSENT:
            fields.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(own.get(name), dict):
            fields[name] = {**own[name], **value}
        else:
            fields[name] = value
    return fields


def _own(config: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and k not in NOT_GIVEN}


def _usual(cls: type) -> dict[str, Any]:
    """The fields of the class's default instance; none where it has no default."""
    try:
        return _own(cls())
    except Exception:  # whatever a library's constructor says about missing fields
        return {}


def _known(cls: type) -> set[str]:
    """Every name that constructors of a config class take."""
    names: set[str] = set()
    for c in cls.__mro__:
        names |= set(getattr(c, "__annotations__", {}))
        if "__init__" in vars(c):
            names |= set(inspect.signature(c.__init__).parameters)
    alias = dict(getattr(cls, "attribute_map", {}) or {})
    return names | set(alias) | set(alias.values())


@dataclass(frozen=True)
class _Layers:
    """How many layers a config has, and which of them the tiny one keeps; None where it does not say."""

    total: int | None
    kept: list[int]

    @staticmethod
    def of(fields: Fields, wanted: int | None, thorough: bool) -> _Layers:
        """The first layer of each kind, which is what lists with an entry per layer say of it.

        Lists of plain numbers, such as one period after another, make no kinds.
        """
        total = next((fields[k] for k in LAYERS if isinstance(fields.get(k), int)), None)
        if total is None:
            return _Layers(None, [])
        found = _Layers(total, [])
        lists = [v for k, v in fields.items() if found.each(k, v) and not _numbers(v)]
        firsts: dict[str, int] = {}
        for i in range(total):
            firsts.setdefault(repr([v[i] for v in lists]), i)
        kept = list(firsts.values())[:MOST_LAYERS]
        least = wanted or (4 if thorough and len(kept) > 1 else 2)
        kept += [i for i in range(total) if i not in kept][: max(least - len(kept), 0)]
        return _Layers(total, sorted(kept) + [0] * (least - len(kept)))

    def each(self, name: str, value: Any) -> bool:
        """Whether a field is a list with an entry per layer."""
        listed = isinstance(value, list | tuple) and not name.endswith("_token_id")
        return listed and self.total is not None and self.total > 1 and len(value) == self.total


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(x, int) and not isinstance(x, bool) for x in values)


def _small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rope settings, or settings per kind of layer. Factors per frequency are cut to the tiny head dim."""
    out = dict(rope)
    pairs = int(HEAD_DIM * (rope.get("partial_rotary_factor") or 1.0)) // 2
    for name, value in rope.items():
        if isinstance(value, dict):
            out[name] = _small_rope(value)
        elif name == "original_max_position_embeddings":
            out[name] = ORIGINAL
        elif name == "mrope_section" and value:
            each = pairs // len(value)
            out[name] = [pairs - each * (len(value) - 1)] + [each] * (len(value) - 1)
        elif isinstance(value, list):
            out[name] = value[:pairs]
    return out


def _layers(config: Any) -> int:
    text = config.get_text_config(decoder=True)
    found = next((getattr(text, name) for name in LAYERS if getattr(text, name, None)), None)
    if found is None:
        raise TraceError(f"{type(config).__name__} does not say how many layers it has")
    return int(found)


def _keep(config: Any, layers: list[int]) -> Any:
    """A copy with these layers; lists with an entry per layer are cut alike."""
    total = _layers(config)
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    for name, value in list(text.to_dict().items()):
        if name in LAYERS:
            _set(text, name, len(layers))
        elif isinstance(value, list) and len(value) == total and total > 1 and not name.endswith("token_id"):
            _set(text, name, [value[i] for i in layers])
    return config


def _set(config: Any, name: str, value: Any) -> None:
    if getattr(config, name, None) != value:
        setattr(config, name, value)
