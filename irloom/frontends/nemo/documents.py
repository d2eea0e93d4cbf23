"""YAML and JSON of a checkpoint, as plain data: no tag makes an object, no ``_target_`` is imported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from irloom.ir.errors import CheckpointError

LIMIT = 4 << 20
"""Characters of a document."""


def read_yaml(text: str, path: Path, name: str) -> dict[str, Any]:
    """A YAML document that is a mapping. Tags that make objects are an error."""
    import yaml

    _bounded(text, path, name)
    try:
        found = yaml.safe_load(text)  # by Python's parser: that in C ends the process where lists nest deep
    except yaml.constructor.ConstructorError as error:
        raise CheckpointError(
            f"{path}: `{name}` wants to make an object: {error.problem}",
            hint="nothing was made; do not trust this file",
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = str(getattr(error, "problem", "") or error).splitlines()[0]
        raise CheckpointError(
            f"{path}: `{name}` is not YAML: {what}", hint="the file is damaged, or was edited"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: `{name}` is no mapping", hint="the file is damaged, or was edited")
    return found


def read_json(text: str, path: Path, name: str) -> dict[str, Any]:
    """A JSON document that is an object."""
    _bounded(text, path, name)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: `{name}` is not JSON: {error}", hint="the file is damaged, or was edited"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path}: `{name}` is no JSON object", hint="the file is damaged, or was edited"
        )
    return found


def read_fiddle(text: str, path: Path, name: str) -> dict[str, Any]:
    """NeMo 2's ``io.json``, a graph of the calls that made a training run, as nested mappings.

    A call is the mapping of its arguments, with the called name as ``_target_``; an object that several
    calls share is one mapping.
    """
    document = read_json(text, path, name)
    try:
        return _Fiddle(document["objects"]).value(document["root"])
    except (KeyError, TypeError, AttributeError, RecursionError, IndexError):
        raise CheckpointError(
            f"{path}: `{name}` is not what NeMo 2 writes", hint="the file is damaged, or was edited"
        ) from None


class _Fiddle:
    def __init__(self, objects: dict[str, Any]) -> None:
        self._objects, self._made = objects, dict[str, Any]()

    def value(self, said: Any) -> Any:
        if not isinstance(said, dict):
            return said
        match said.get("type"):
            case "ref":
                return self._object(said["key"])
            case "pyref":
                return {"_target_": f"{said['module']}.{said['name']}"}
            case _:
                return said.get("value")

    def _object(self, key: str) -> Any:
        if key in self._made:
            return self._made[key]
        stored = self._objects[key]
        items = {_argument(str(place)): held for place, held in stored.get("items", [])}
        if (stored.get("type") or {}).get("name") in ("tuple", "list"):
            self._made[key] = made = list[Any]()
            made.extend(self.value(held) for held in items.values())
            return made
        self._made[key] = call = dict[str, Any]()
        metadata = self.value(stored.get("metadata"))
        if isinstance(metadata, dict) and isinstance(metadata.get("fn_or_cls"), dict):
            call.update(metadata["fn_or_cls"])
        call.update({argument: self.value(held) for argument, held in items.items()})
        return call


def _argument(place: str) -> str:
    """``Attr(name='hidden_size')`` is the argument ``hidden_size``."""
    found = re.search(r"['\"]?([\w.-]+)['\"]?\)$", place)
    return found[1] if found else place


def _bounded(text: str, path: Path, name: str) -> None:
    if len(text) > LIMIT:
        raise CheckpointError(
            f"{path}: `{name}` has {len(text)} characters, where {LIMIT} are a lot",
            hint="the file is damaged, or was edited",
        )
