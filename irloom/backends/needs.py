"""What an engine needs beside irloom: the packages, and the files, that define ops of its program.

An engine brings no code. What an op of a plugin means, and its kernel, come from where the engine is opened,
so that has to be what was there when it was built: the same version of the package, or the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.ir.op import OPS, Op
from irloom.ir.plugins import HERE, origin_of


@dataclass(frozen=True)
class Need:
    """Ops, and what defines them: a ``package`` of a ``version``, or a ``file`` with this SHA-256."""

    ops: tuple[str, ...]
    package: str | None
    version: str | None
    file: str
    sha256: str

    @property
    def said(self) -> str:
        """The ops, for a person."""
        return f"op{'s' * (len(self.ops) > 1)} {', '.join(self.ops)}"

    def lacking(self) -> tuple[str, str] | None:
        """What of it is not here, and what would bring it; None where all of it is."""
        return self._lacking_file() if self.package is None else self._lacking_package(self.package)

    def _lacking_package(self, package: str) -> tuple[str, str] | None:
        wanted, install = f"{package} {self.version}", f"pip install {package}=={self.version}"
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"{wanted}, which is not installed", install
        if found != self.version:
            return f"{wanted}, and {found} is installed", install
        try:
            for name, offers in OPS.packages.offers().items():  # also one that only brings kernels
                if any(o.package == package for o in offers):
                    OPS.packages.load(name)
            missing = [name for name in self.ops if OPS.find(name) is None]
        except IrloomError as error:
            return f"{wanted}, which does not load: {error.message}", error.hint
        return (f"{wanted}, which has no op {missing[0]} here", f"{install} again") if missing else None

    def _lacking_file(self) -> tuple[str, str] | None:
        found = [OPS.find(name) for name in self.ops]
        if None in found:
            return f"{self.file}, which was not given", f"--plugin {self.file}"
        if any(op is not None and _sha256(file_of(op)) != self.sha256 for op in found):
            return f"{self.file} as it was when it was built", ""
        return None


def needs(m: Module) -> list[Need]:
    """What the ops of ``m`` that are not irloom's own come from, by package and file."""
    used = {n.op.name: n.op for f in m.funcs.values() for n in f.nodes}
    found: dict[tuple[str | None, str | None, str], list[str]] = {}
    for name, op in sorted(used.items()):
        if not (file := file_of(op)).is_relative_to(HERE):
            made = origin_of(str(file))
            key = (made.package, made.version, "" if made.package else str(file))
            found.setdefault(key, []).append(name)
    return [
        Need(tuple(ops), package, told, file, _sha256(Path(file)) if file else "")
        for (package, told, file), ops in found.items()
    ]


def code(files: Iterable[Path]) -> str:
    """One hash of these files, of the kernels beside them, and of the packages that they are part of."""
    every = {f for file in files for f in _with_package(file)}
    return hashlib.sha256("".join(_sha256(f) for f in sorted(every)).encode()).hexdigest()


def _with_package(file: Path) -> list[Path]:
    folder = file.parent
    if not (folder / "__init__.py").is_file():
        return [file, *folder.glob("*.cpp")]
    while (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    return [f for kind in ("*.py", "*.cpp", "*.h") for f in folder.rglob(kind)]


def file_of(op: Op) -> Path:
    """Where an op is defined."""
    return Path(op.place.rpartition(":")[0])


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
