"""Files of passes and ops that are in no package: ``--plugin FILE.py``, or a folder of such files.

A folder is loaded as a package, so that its files may import each other: ``from .my_op import my_op``. One
with an ``__init__.py`` has its own name, ``from my_package.my_op import my_op``, as when it is installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from irloom.ir.errors import PipelineError
from irloom.ir.plugins import line_of, told

PREFIX = "irloom_plugin_"  # of the names of their modules


def load_path(path: Path) -> list[tuple[Path, ModuleType]]:
    """The modules of a file or a folder, each with its file; ``PipelineError`` for what does not load.

    In a folder, files whose names start with ``_`` or ``test_`` and ``conftest.py`` are not looked for.
    """
    if path.is_file():
        name = PREFIX + _word(path.stem)
        with _loading(path):
            return [(path, _executed(name, spec_from_file_location(name, path)))]
    if not path.is_dir():
        raise PipelineError(f"plugin {path}: no such file", hint="give a Python file, or a folder of them")
    files = sorted(p for p in path.glob("*.py") if not p.name.startswith(("_", "test_", "conftest.")))
    if not files:
        raise PipelineError(f"plugin {path}: no Python file is in it", hint="a pass is a file: quiet.py")
    name = _word(path.resolve().name)
    package = name if (path / "__init__.py").is_file() else PREFIX + name
    with _loading(path):
        _open(path, package)
    return [(file, _imported(file, f"{package}.{file.stem}")) for file in files]


def _imported(file: Path, name: str) -> ModuleType:
    with _loading(file):
        return import_module(name)


@contextmanager
def _loading(path: Path) -> Generator[None]:
    """Whatever happens inside is about ``path``."""
    try:
        yield
    except (Exception, SystemExit) as e:
        error, line = PipelineError(f"plugin {path} does not load: {told(e)}"), line_of(e)
        raise (error.at(f"  --> {line}") if line else error) from e


def _open(folder: Path, name: str) -> None:
    """Make ``folder`` the package ``name``, whether or not it has an ``__init__.py``."""
    door, places = folder / "__init__.py", [str(folder)]
    if not door.is_file():
        for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
            del sys.modules[module]  # of a folder of the same name, loaded before
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = places
        _executed(name, spec)
    elif name not in sys.modules:
        _executed(name, spec_from_file_location(name, door, submodule_search_locations=places))
    elif Path(there := sys.modules[name].__file__ or "").resolve() != door.resolve():
        raise ImportError(f"there is a module {name!r} already, {there or 'built in'}: rename the folder")


def _executed(name: str, spec: ModuleSpec | None) -> ModuleType:
    if spec is None:
        raise ImportError("it is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _word(name: str) -> str:
    return re.sub(r"\W", "_", name)
