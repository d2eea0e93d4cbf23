"""Which passes there are: the files of this folder, installed packages, and files given one by one.

A pass's name is its file's: ``fuse_mlp.py`` is ``fuse-mlp``, and a Python keyword ends with an underscore
(``raise_.py`` is ``raise``). A package offers a pass as an entry point of the group ``irloom.passes``, under
the name of its choice. ``--plugin`` gives a file, which holds one pass at most, or a folder of such files.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from irloom.ir.errors import PipelineError
from irloom.ir.plugins import Group, Unfit

from .core import Pass
from .files import load_path

HERE = Path(__file__).parent
RESERVED = "default"  # in the text of a pipeline, the pipeline of the target


class Registry(Mapping[str, type[Pass]]):
    """Passes by name. Looking one up imports only its file; listing them imports all.

    What an installed package offers and does not load is left out of the list, with a warning.
    """

    def __init__(self) -> None:
        self.packages = Group("irloom.passes", "pass", PipelineError, _accepted, _taken)
        self.names: dict[type[Pass], str] = {}  # of those that are not files of this folder
        self.loaded: dict[Path, None] = {}  # files of plugins, whatever they define
        self._files: dict[str, tuple[type[Pass], Path]] = {}

    def __getitem__(self, name: str) -> type[Pass]:
        """The pass called ``name``; ``PipelineError`` with the nearest name if there is none."""
        if name in self.packages:
            found = self.packages.load(name)
            self.names[found] = name
            return found
        found = self._files[name][0] if name in self._files else _own(name)
        if found is None:
            near = get_close_matches(name, [*_own_names(), *self.packages, *self._files], 1)
            hint = f"did you mean {near[0]!r}?" if near else "`irloom passes` lists them"
            raise PipelineError(f"no pass {name!r}", hint=hint)
        return found

    def __contains__(self, name: object) -> bool:
        known = name in self._files or name in self.packages
        return known or (isinstance(name, str) and _own(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*_own_names(), *self.plugins()]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def plugins(self) -> dict[str, type[Pass]]:
        """The passes that are not irloom's own: of installed packages and of files."""
        return {name: self[name] for name in [*self.packages.every(), *self._files]}

    def register_file(self, path: Path) -> type[Pass] | None:
        """Load one file of ops and at most one pass: the pass."""
        found = self.register(path)
        return found[0] if found else None

    def register(self, path: Path) -> list[type[Pass]]:
        """Load a file of a pass and ops, or a folder of such files; a pass is named after its file.

        ``PipelineError`` when there is no such file, it does not load, defines several passes, or one whose
        name is taken.
        """
        found = load_path(path)
        self.loaded.update((file.resolve(), None) for file, _ in found)
        return [self._register(file, module) for file, module in found if _passes(module)]

    def _register(self, file: Path, module: ModuleType) -> type[Pass]:
        found, name = _passes(module), _name(file)
        if len(found) > 1:
            classes = ", ".join(c.__name__ for c in found)
            hint = "one file is one pass, named after the file; --plugin also takes a folder of files"
            raise PipelineError(f"plugin {file} defines {len(found)} passes: {classes}", hint=hint)
        if name in self.packages or _taken(name):
            other = self.packages.origin(name) if name in self.packages else "irloom itself"
            message = f"pass {name!r} is defined by both {other} and {file}"
            raise PipelineError(message, hint="rename the file")
        self._files[name], self.names[found[0]] = (found[0], file), name
        return found[0]


def load(name: str) -> type[Pass]:
    """The pass called ``name``."""
    return PASSES[name]


def available() -> dict[str, type[Pass]]:
    """Every pass."""
    return dict(PASSES)


def load_plugin(path: str | Path) -> list[type[Pass]]:
    """Load a file of a pass and ops, or a folder of such files, without packaging them: the passes.

    One whose file has the name of a file loaded before takes its place. A file that defines ops is loaded
    once: an op has one definition.
    """
    return PASSES.register(Path(path))


def name_of(cls: type[Pass]) -> str:
    """The name of a pass: its file's, or what its package offers it as.

    >>> from irloom.passes.canonicalize import Canonicalize
    >>> name_of(Canonicalize)
    'canonicalize'
    """
    if cls in PASSES.names:
        return PASSES.names[cls]
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    return _name(Path(file)) if file else cls.__module__.rpartition(".")[2].rstrip("_").replace("_", "-")


def page(name: str) -> str:
    """What a person reads about a pass: the docstring of its file and of its class."""
    cls = PASSES[name]
    module = inspect.getmodule(cls)
    texts = [inspect.getdoc(module) if module else None, inspect.cleandoc(cls.__doc__ or "")]
    return "\n\n".join(t for t in texts if t)


def _name(path: Path) -> str:
    return path.stem.rstrip("_").replace("_", "-")


def _passes(module: ModuleType) -> list[type[Pass]]:
    """The passes that a module itself defines."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return [c for c in classes if issubclass(c, Pass) and not inspect.isabstract(c)]


def _own(name: str) -> type[Pass] | None:
    stem = name.replace("-", "_")
    for file in (stem, f"{stem}_"):
        if stem.isidentifier() and "_" not in name and (HERE / f"{file}.py").is_file():
            found = _passes(importlib.import_module(f"irloom.passes.{file}"))
            return found[0] if found else None
    return None


def _own_names() -> list[str]:
    return [n for n in sorted(map(_name, HERE.glob("[!_]*.py"))) if _own(n)]


def _taken(name: str) -> bool:
    return name == RESERVED or _own(name) is not None


def _accepted(found: Any) -> type[Pass]:
    """The pass that an entry point names: its class, or a module that defines it alone."""
    if isinstance(found, ModuleType):
        passes = _passes(found)
        if len(passes) == 1:
            return passes[0]
        many = ", ".join(c.__name__ for c in passes) or "none"
        raise Unfit(f"a module of {len(passes)} passes ({many}): it has to name one class")
    if not (inspect.isclass(found) and issubclass(found, Pass)):
        raise Unfit(f"a {type(found).__name__}: it has to name a Pass")
    return found


PASSES = Registry()
"""The passes there are."""
