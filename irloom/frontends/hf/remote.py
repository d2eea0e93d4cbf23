"""Code that a model directory brings with it: what would run, and the only place where it runs.

``auto_map`` in config.json names classes in Python files beside it. They are loaded by the library's loader,
from that directory only, where the user said that they are trusted: nothing asks, nothing runs unasked.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.frontends.facts import read_json
from irloom.frontends.store import digest
from irloom.ir.errors import CheckpointError, TraceError

CONFIG, MODEL = "AutoConfig", "AutoModelForCausalLM"
FLAG = "--trust-remote-code (trust_remote_code=True in Python)"

TRUSTED: dict[type, type] = {}
"""Model class by config class, of code that the user trusted in this process."""

_HOMES: dict[tuple[str, ...], Path] = {}
"""Where code came from that the library copied, by the folder of the copy in its module cache."""


@dataclass(frozen=True)
class RemoteCode:
    """The code of a directory: ``modeling_x.XForCausalLM`` and the like, by the library's auto class."""

    folder: Path
    classes: Mapping[str, str]

    @property
    def config_json(self) -> Path:
        return self.folder / "config.json"

    def files(self) -> list[str]:
        """The names of the files that would run first, as far as they are of this directory."""
        places = (c.partition(".")[0] + ".py" for c in self.classes.values() if "--" not in c)
        return list(dict.fromkeys(places))

    def load(self, auto: str) -> type:
        """Run the file of one class and give the class; every way in which it fails is a ``TraceError``."""
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = self.classes[auto]
        file = self._file(auto, reference)
        try:
            found = get_class_from_dynamic_module(reference, str(self.folder), local_files_only=True)
        except (Exception, SystemExit) as error:
            raise self._failed(file, error) from error
        if copy := _copied(str(_file_of(found))):
            _HOMES[copy[0]] = self.folder
        return found

    def _file(self, auto: str, reference: str) -> Path:
        """The file of a class; nothing outside of the directory is ever named by it."""
        if "--" in reference:
            raise TraceError(
                f"{self.config_json}: {auto} is `{reference}`, code of another repository",
                hint="copy its files beside config.json and take the part up to `--` out of auto_map",
            )
        if not re.fullmatch(r"\w+(/\w+)*\.\w+", reference):
            raise TraceError(f"{self.config_json}: {auto} is `{reference}`, not FILE.CLASS")
        file = self.folder / (reference.partition(".")[0] + ".py")
        if not file.is_file():
            raise TraceError(
                f"{self.config_json}: {auto} is `{reference}`, but there is no {file.name}",
                hint="the download is incomplete: copy the model's Python files, too",
            )
        return file

    def _failed(self, file: Path, error: BaseException) -> TraceError:
        """What went wrong while the code of ``file`` was imported, and at which of the model's own lines."""
        missing = re.search(r"not found in your environment: (.*?)\. Run", str(error))
        if missing:
            names = missing[1].replace(",", "")
            return TraceError(f"{file} needs {missing[1]}, not installed here", hint=f"pip install {names}")
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        written = read_json(self.config_json).get("transformers_version")
        found = TraceError(
            f"{file} does not import: {type(error).__name__}: {what}",
            hint=f"it was written for transformers {written}" if written else "see whether it imports alone",
        )
        lines = [(_copied(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
        own = [f"{self.folder.joinpath(*copy[1])}:{line}" for copy, line in lines if copy]
        if isinstance(error, SyntaxError) and error.lineno:
            own = [f"{file}:{error.lineno}"]
        if own:
            found.at(f"in {own[-1]}")
        return found


def remote_code(folder: Path) -> RemoteCode | None:
    """What a directory's config.json says about code of its own, or None where it says nothing."""
    if not (folder / "config.json").is_file():
        return None
    said = read_json(folder / "config.json").get("auto_map")
    if not isinstance(said, dict):
        return None
    classes = {auto: c for auto, c in said.items() if auto in (CONFIG, MODEL) and isinstance(c, str)}
    return RemoteCode(folder.resolve(), classes) if classes else None


def load_config(code: RemoteCode, trust: bool) -> Any:
    """The config object of a directory that brings code, with its model class known in ``TRUSTED``.

    Where ``trust`` is off the library's own classes are used if it has them for this ``model_type``; else
    ``TraceError`` says which file would run. A config class of the library keeps its own model class: its
    object here becomes one of a subclass.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = read_json(code.config_json).get("model_type") in CONFIG_MAPPING
    if not trust and not known:
        files = ", ".join(code.files()) or "code of another repository"
        raise TraceError(
            f"{code.folder}: this model runs code of its own: {files}",
            hint=f"read the code; if you trust it, give {FLAG}",
        )
    if not trust or CONFIG not in code.classes:
        config: Any = AutoConfig.from_pretrained(code.folder, local_files_only=True, trust_remote_code=False)
    else:
        config = _made(code)
    if trust and MODEL in code.classes:
        model = code.load(MODEL)
        if type(config).__module__.startswith("transformers.models."):
            config.__class__ = type(type(config).__name__, (type(config),), {})
        TRUSTED[type(config)] = model
    return config


def _made(code: RemoteCode) -> Any:
    made: Any = code.load(CONFIG)
    try:
        return made.from_pretrained(code.folder, local_files_only=True)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{code.config_json}: {made.__name__} does not take it: {type(error).__name__}: {first}"
        ) from error


def code_key(folder: Path, trust: bool) -> str:
    """What a trace of ``folder`` is made of beside the library's code: a hash that goes into its key.

    That is the directory's own code, and whatever this process registered with the library.
    """
    own = sorted(folder.rglob("*.py")) if trust and remote_code(folder) else []
    auto = sys.modules.get("transformers.models.auto.modeling_auto")
    registered = auto.MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.values() if auto else ()
    return digest([*own, *sorted(map(_file_of, registered))])


def class_key(config: Any) -> str:
    """The same for a config object: a hash of the file of its model class, empty for the library's own."""
    from irloom.frontends.hf.skeleton import causal_class

    found = causal_class(config)
    return "" if found.__module__.startswith("transformers.models.") else digest([_file_of(found)])


def source_of(file: str) -> str:
    """Where the user has a file that the library copied into its module cache; any other file is itself."""
    copy = _copied(file)
    home = _HOMES.get(copy[0]) if copy else None
    return str(home.joinpath(*copy[1])) if copy and home else file


def _copied(file: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The folder of a copy in the library's module cache, and the file's path in it: (root, model, hash)."""
    from transformers.utils.hub import HF_MODULES_CACHE

    try:
        parts = Path(file).relative_to(HF_MODULES_CACHE).parts
    except ValueError:
        return None
    return (parts[:3], parts[3:]) if len(parts) > 3 else None


def _file_of(found: type) -> Path:
    """The file of a class; of one typed into a session, a name that no other session has."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    return Path(file) if file else Path(f"{found.__qualname__} of process {os.getpid()}, {id(found)}")
