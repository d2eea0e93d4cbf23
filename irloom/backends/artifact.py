"""An engine is a directory: a manifest with the hash of every part, written whole or not at all.

The parts are ``module.irloom`` (the final IR), ``plan.json``, weights, compiled code and the tokenizer. A
part may be a *link*: an unchanged tensor of the source checkpoint that is not stored again. Every byte is
checked before any is used, because compiled parts are native code. The manifest's own hash stands beside it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from irloom.backends.digests import Extent, digests, remembered_digests
from irloom.backends.needs import Need
from irloom.ir.errors import BuildError, EngineMismatch
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.ir.plan import KVPlan
from irloom.ir.show import show

FORMAT = 3
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for more."""


@dataclass(frozen=True)
class Part:
    """A file of the engine: its SHA-256 (see ``digests``), size in bytes, and where pieces begin anew."""

    sha256: str
    bytes: int
    cuts: list[int] = field(default_factory=list[int])


@dataclass(frozen=True)
class Link:
    """Bytes ``start`` to ``stop`` of a file outside the engine, and their SHA-256."""

    file: str
    start: int
    stop: int
    sha256: str


@dataclass
class Manifest:
    """What an engine is made of and for. ``machine`` and ``versions`` are facts of where it was built, and
    ``needs`` is what defines ops of its program that are not irloom's own.
    """

    target: str
    model: str
    pipeline: list[str]
    versions: dict[str, str]
    machine: dict[str, Any]
    rebuild: list[str] = field(default_factory=list[str])
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    needs: list[Need] = field(default_factory=list[Need])
    parts: dict[str, Part] = field(default_factory=dict[str, Part])
    links: dict[str, Link] = field(default_factory=dict[str, Link])
    format: int = FORMAT

    @property
    def command(self) -> str:
        """The command that builds it again."""
        return shlex.join(self.rebuild)


class EngineWriter:
    """Writes an engine beside its final place and renames it there at the end.

    A build that is stopped, killed, or runs out of disk leaves nothing under the final name; an engine that
    was there before stays until the new one is whole.
    """

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.out, self.manifest = out, manifest
        self.folder = out.parent / f".{out.name}.{os.getpid()}.partial"
        self._links: dict[str, Extent] = {}
        self._cuts: dict[str, list[int]] = {}

    def __enter__(self) -> EngineWriter:
        if (
            self.out.exists()
            and not (self.out / MANIFEST).is_file()
            and (not self.out.is_dir() or any(self.out.iterdir()))
        ):
            raise EngineMismatch(
                f"{self.out} exists and is not an engine", hint="choose another place, or remove it"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def file(self, name: str) -> Path:
        """Where to write the part ``name``; parents are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_text(self, name: str, text: str) -> None:
        """Write a part."""
        self.file(name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a part as JSON."""
        self.write_text(name, json.dumps(value, indent=1))

    def write_program(self, m: Module, caches: KVPlan) -> None:
        """Write what runs, ``module.irloom``, and what it needs at run time, ``plan.json``."""
        self.write_text("module.irloom", show(m))
        self.write_json("plan.json", {"caches": caches.to_json(), "cost": m.plan().to_json()})

    def link(self, name: str, file: Path, start: int, stop: int) -> None:
        """Refer to a range of a file that stays where it is; it is hashed at the end, with all parts."""
        self._links[name] = Extent(file.resolve(), start, stop)

    def cut(self, name: str, at: Sequence[int]) -> None:
        """Have the part ``name`` hashed in pieces that begin anew at these bytes, in order: what lies behind
        them may be taken to places of its own, and hashed there.
        """
        self._cuts[name] = [*at]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failed:
            error = failed
            raise
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise BuildError(
                    f"{self.out}: {error.strerror} while the engine was written; nothing of it is left",
                    hint="make room, or choose a place on another disk",
                ) from None

    def _finish(self) -> None:
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        names = [p.relative_to(self.folder).as_posix() for p in files]
        cuts = [self._cuts.get(name, []) for name in names]
        own = [Extent(p, 0, p.stat().st_size, tuple(at)) for p, at in zip(files, cuts, strict=True)]
        for name, x, at, digest in zip(names, own, cuts, digests(own), strict=True):
            self.manifest.parts[name] = Part(digest, x.stop, at)
        found = remembered_digests([*self._links.values()])
        for (name, x), digest in zip(self._links.items(), found, strict=True):
            self.manifest.links[name] = Link(str(x.path), x.start, x.stop, digest)
        text = json.dumps(asdict(self.manifest), indent=1).encode()
        (self.folder / MANIFEST).write_bytes(text)
        (self.folder / SEAL).write_text(hashlib.sha256(text).hexdigest() + "\n", encoding="utf-8")
        old = self.out.parent / f".{self.out.name}.{os.getpid()}.old"
        if self.out.exists():
            self.out.rename(old)
        self.folder.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)


class EngineReader:
    """A checked engine directory: its manifest, and paths of parts whose bytes are what the manifest says.

    Of parts and links whose names begin with one of ``later``, only the sizes are known at first. Who takes
    their bytes to where they are used may check them there (``compare``); nothing that was made of them may
    be used before ``checked``.
    """

    def __init__(self, folder: Path, later: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._check_names()
        names = [*self.manifest.parts, *self.manifest.links]
        self.unchecked = dict.fromkeys(names)
        """Parts and links whose bytes are not known to be what the manifest says."""
        self._check_bytes([name for name in names if not name.startswith(later)])

    def checked(self) -> None:
        """Check what has not been checked yet; ``EngineMismatch`` where a byte was changed."""
        self._check_bytes([*self.unchecked])

    def extent(self, name: str) -> Extent:
        """Where the bytes of a part or a link are, as they are hashed."""
        if name in self.manifest.parts:
            part = self.manifest.parts[name]
            return Extent(self.folder / name, 0, part.bytes, tuple(part.cuts))
        link = self.manifest.links[name]
        return Extent(Path(link.file), link.start, link.stop)

    def compare(self, found: Mapping[str, str]) -> None:
        """Parts and links with these digests are checked; ``EngineMismatch`` where one was changed."""
        parts, links = self.manifest.parts, self.manifest.links
        said = {name: (parts.get(name) or links[name]).sha256 for name in found}
        changed = [name for name in found if found[name] != said[name]]
        for name in found.keys() - changed:
            self.unchecked.pop(name, None)
        for name in changed:
            if name in links:
                raise self.refuse(f"{name} is a part of {links[name].file}, which was changed")
            now = f"SHA-256 {found[name][:12]}, the manifest says {said[name][:12]}"
            raise self.refuse(f"part {name} was changed: {now}")

    def file(self, name: str) -> Path:
        """The path of a part."""
        if name not in self.manifest.parts:
            raise EngineMismatch(f"{self.folder}: the engine has no part {name!r}", hint=self._hint())
        return self.folder / name

    def read_text(self, name: str) -> str:
        """A part as text."""
        return self.file(name).read_text(encoding="utf-8")

    def read_json(self, name: str) -> Any:
        """A part as JSON."""
        return json.loads(self.read_text(name))

    def module(self) -> Module:
        """The program; ``EngineMismatch`` where what defines ops of it is not here as it was at the build."""
        for need in self.manifest.needs:
            if lack := need.lacking():
                what, bring = lack
                raise EngineMismatch(
                    f"{self.folder}: the engine needs {what}, for {need.said}",
                    hint="; or ".join(filter(None, [bring, self._hint()])),
                )
        return parse(self.read_text("module.irloom"))

    def require(self, built: Mapping[str, str], here: Mapping[str, str]) -> None:
        """Refuse with the exact difference where what the engine was built with is not what is here."""
        differing = [k for k in built if built[k] != here.get(k)]
        if differing:
            facts = "; ".join(f"{k} {built[k]} when built, {here.get(k, 'absent')} here" for k in differing)
            raise EngineMismatch(f"{self.folder}: the engine does not fit: {facts}", hint=self._hint())

    def refuse(self, reason: str) -> EngineMismatch:
        """An error about this engine that names the command that rebuilds it."""
        return EngineMismatch(f"{self.folder}: {reason}", hint=self._hint())

    def _hint(self) -> str:
        return f"build it again: {self.manifest.command}" if self.manifest.rebuild else "build it again"

    def _check_names(self) -> None:
        """Every file is there and as long as it was, and no other."""
        named = self.manifest.parts
        there = {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()} - {
            MANIFEST,
            SEAL,
        }
        if missing := sorted(set(named) - there):
            raise self.refuse(f"part {missing[0]} is missing")
        if extra := sorted(there - set(named)):
            raise self.refuse(f"{extra[0]} is not a part of the engine")
        for name, part in named.items():
            size = (self.folder / name).stat().st_size
            if size != part.bytes:
                raise self.refuse(f"part {name} has {size} bytes, the manifest says {part.bytes}")
        links = self.manifest.links
        for file in dict.fromkeys(link.file for link in links.values()):
            if not Path(file).is_file():
                name = next(name for name, link in links.items() if link.file == file)
                raise self.refuse(f"{name} is a part of {file}, which is gone")

    def _check_bytes(self, names: Sequence[str]) -> None:
        self.compare(dict(zip(names, digests([self.extent(name) for name in names]), strict=True)))


def is_engine(path: Path) -> bool:
    """Whether a path looks like an engine directory."""
    return (path / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """What an engine says of itself; of its bytes, nothing else is looked at."""
    path = folder / MANIFEST
    if not path.is_file():
        raise EngineMismatch(
            f"{folder} is not an engine: it has no {MANIFEST}", hint="irloom compile MODEL -o DIR makes one"
        )
    text, seal = path.read_bytes(), folder / SEAL
    if not seal.is_file() or seal.read_text(errors="replace") != hashlib.sha256(text).hexdigest() + "\n":
        raise EngineMismatch(
            f"{path} is not as it was written: its SHA-256 is not that in {SEAL}",
            hint="build the engine again",
        )
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.get("format") != FORMAT:
            raise EngineMismatch(
                f"{folder}: the engine is of format {raw.get('format')}, this irloom reads format {FORMAT}",
                hint="build it again",
            )
        raw["parts"] = {k: Part(**v) for k, v in raw["parts"].items()}
        raw["needs"] = [Need(**{**n, "ops": tuple(n["ops"])}) for n in raw.get("needs", [])]
        raw["links"] = {k: Link(**v) for k, v in raw["links"].items()}
        return Manifest(**raw)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise EngineMismatch(f"{path} cannot be read: {e}", hint="build the engine again") from None
