"""Which passes there are: the files of this folder, installed packages, and single files.

A pass's name is its file's: ``fuse_mlp.py`` is ``fuse-mlp``, and a Python keyword ends with an underscore
(``raise_.py`` is ``raise``). A package offers passes as entry points of the group ``irloom.passes``;
``--plugin FILE.py`` gives a single one.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from irloom.ir.errors import PipelineError

from .core import Pass

GROUP = "irloom.passes"
HERE = Path(__file__).parent


class Registry(Mapping[str, type[Pass]]):
    """Passes by name. Looking one up imports only its file; listing them imports all."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[type[Pass], Path]] = {}
        self.names: dict[type[Pass], str] = {}  # of those that are not files of this folder

    def __getitem__(self, name: str) -> type[Pass]:
        """The pass called ``name``; ``PipelineError`` with the nearest name if there is none."""
        own, offered, file = _own(name), _offered().get(name), self._files.get(name)
        if own and offered:
            raise _clash(name, "irloom", _package(offered))
        if own or file or offered:
            return own or (file[0] if file else self._load(offered))
        near = get_close_matches(name, iter(self), 1)
        hint = f"did you mean {near[0]!r}?" if near else "`irloom passes` lists them"
        raise PipelineError(f"no pass {name!r}", hint=hint)

    def _load(self, e: EntryPoint | None) -> type[Pass]:
        assert e is not None
        found = _loaded(e)
        self.names[found] = e.name
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._files or name in _offered() or _own(name) is not None)

    def __iter__(self) -> Iterator[str]:
        own = [n for n in sorted(map(_name, HERE.glob("[!_]*.py"))) if _own(n)]
        return iter(dict.fromkeys([*own, *_offered(), *self._files]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def plugins(self) -> dict[str, type[Pass]]:
        """The passes that are not irloom's own: of installed packages and of single files."""
        return {name: self[name] for name in dict.fromkeys([*_offered(), *self._files])}

    def register_file(self, path: Path) -> type[Pass] | None:
        """Load one file of passes and ops. Its pass, if it defines one, is named after the file.

        ``PipelineError`` when the file is missing, does not load, or defines several.
        """
        found = _passes(_import_file(path))
        if len(found) > 1:
            hint = "one file is one pass, named after the file"
            raise PipelineError(f"{path} defines {len(found)} passes", hint=hint)
        if found:
            name = _name(path)
            if name in self and name not in self._files:
                raise _clash(name, "irloom" if _own(name) else _package(_offered()[name]), str(path))
            self._files[name], self.names[found[0]] = (found[0], path), name
        return found[0] if found else None


PASSES = Registry()


def load(name: str) -> type[Pass]:
    """The pass called ``name``."""
    return PASSES[name]


def available() -> dict[str, type[Pass]]:
    """Every pass."""
    return dict(PASSES)


def load_plugin(path: str | Path) -> None:
    """Load a file of passes and ops without packaging it."""
    PASSES.register_file(Path(path))


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


def _offered() -> dict[str, EntryPoint]:
    """Entry points by name; two packages that offer one name are an error."""
    out: dict[str, EntryPoint] = {}
    for e in entry_points(group=GROUP):
        if e.name in out and out[e.name].value != e.value:
            raise _clash(e.name, _package(out[e.name]), _package(e))
        out[e.name] = e
    return out


def _clash(name: str, one: str, other: str) -> PipelineError:
    return PipelineError(f"pass {name!r} is defined by both {one} and {other}", hint="rename or remove one")


def _package(e: EntryPoint) -> str:
    return e.dist.name if e.dist else e.value


def _loaded(e: EntryPoint) -> type[Pass]:
    try:
        found = e.load()
    except Exception as error:
        raise PipelineError(f"pass {e.name!r} of {_package(e)} does not load: {error}") from error
    if isinstance(found, ModuleType):
        found = next(iter(_passes(found)), None)
    if not (inspect.isclass(found) and issubclass(found, Pass)):
        hint = "the entry point names a Pass or its module"
        raise PipelineError(f"pass {e.name!r} of {_package(e)} is {found!r}", hint=hint)
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PipelineError(f"plugin {path}: no such file")
    name = f"irloom_plugin_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PipelineError(f"plugin {path} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PipelineError(f"plugin {path} does not load: {type(error).__name__}: {error}") from error
    return module
