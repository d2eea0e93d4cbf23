"""What installed packages offer to irloom: passes, ops, frontends and targets, all by entry points.

A package names what it offers in its metadata, and says which irloom it is made for as it says of any other
package that it needs::

    [project]
    dependencies = ["irloom>=0.1,<0.2"]

    [project.entry-points."irloom.passes"]
    quiet = "loom_quiet.quiet:Quiet"

Nothing of a package is imported before it is needed. What then does not load is warned of once and left out;
asked for by its name, it is an error.
"""

from __future__ import annotations

import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

import irloom

from .errors import IrloomError

T = TypeVar("T")
GROUPS = ("irloom.passes", "irloom.ops", "irloom.frontends", "irloom.backends")
HERE = Path(irloom.__file__).parent


def sources(things: Iterable[type]) -> list[Path]:
    """The Python files of others that these classes come from: whole packages, and single files."""
    found: set[Path] = set()
    for top in {thing.__module__.partition(".")[0] for thing in things} - {"irloom"}:
        module = sys.modules[top]
        folders = [Path(p) for p in getattr(module, "__path__", ())]
        found.update(file for folder in folders for file in folder.rglob("*.py"))
        found.update([Path(module.__file__)] if module.__file__ else [])
    return sorted(found)


class Unfit(Exception):
    """What an entry point names is not what its group is for: ``a function, not a Pass``."""


class PluginWarning(UserWarning):
    """Something of an installed package was left out; on the command line a line on stderr says so."""


@dataclass(frozen=True)
class Offer:
    """One entry point: what it is called, and the package that brings it, installed in the folder ``place``.

    ``str`` is ``loom-quiet 1.0``.
    """

    name: str
    package: str
    version: str
    place: str
    entry: EntryPoint = field(compare=False)

    @staticmethod
    def of(e: EntryPoint) -> Offer:
        """What an entry point says; one that belongs to no package goes by its module."""
        if e.dist is None:
            return Offer(e.name, e.module, "", "", e)
        return Offer(e.name, e.dist.name, e.dist.version, str(e.dist.locate_file("")), e)

    def __str__(self) -> str:
        return f"{self.package} {self.version}".rstrip()

    def misfit(self) -> str | None:
        """Why the package is not for this irloom, by its own requirements; None where it is."""
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.utils import canonicalize_name

        for text in (self.entry.dist.requires or ()) if self.entry.dist else ():
            try:
                need = Requirement(text)
            except InvalidRequirement:
                return f"requires {text!r}, which cannot be read"
            if canonicalize_name(need.name) != "irloom" or (need.marker and not need.marker.evaluate()):
                continue
            if not need.specifier.contains(irloom.__version__, prereleases=True):
                return f"needs irloom{need.specifier}, this is irloom {irloom.__version__}"
        return None


@dataclass(frozen=True)
class Origin:
    """Where a pass or an op comes from: a package of this version, or a single ``file``."""

    package: str | None
    version: str | None
    file: str

    def __str__(self) -> str:
        return self.file if self.package is None else f"{self.package} {self.version}"


def origin(thing: Any) -> Origin:
    """Where a class or a function is defined, for a person who looks for it."""
    return _origin(thing.__module__, inspect.getsourcefile(thing) or "")


def origin_of(file: str) -> Origin:
    """Where the code in a file that was imported comes from."""
    named = (name for name, m in list(sys.modules.items()) if vars(m).get("__file__") == file)
    return _origin(next(named, ""), file)


def _origin(module: str, file: str) -> Origin:
    top = module.partition(".")[0]
    if top == "irloom":
        return Origin("irloom", irloom.__version__, file)
    for e in (e for group in GROUPS for e in entry_points(group=group)):
        if e.dist and e.module.partition(".")[0] == top:
            return Origin(e.dist.name, e.dist.version, file)
    return Origin(None, None, file)


@dataclass(frozen=True)
class Failure:
    """Why something that is offered cannot be used, as the parts of an error."""

    message: str
    hint: str
    place: str | None = None

    def error(self, kind: type[IrloomError]) -> IrloomError:
        """A new error, to be raised."""
        error = kind(self.message, hint=self.hint)
        return error.at(f"  --> {self.place}") if self.place else error


class Group(Generic[T]):
    """The entry points of one group, such as ``irloom.passes``: what is offered, and what of it loads.

    ``noun`` and ``error`` are for messages: what one of them is called, and the error to raise. ``accept``
    makes what is wanted of what an entry point names, or raises ``Unfit`` with what it is instead.
    ``own`` says which names are irloom's own: nobody else may offer those.
    """

    def __init__(
        self,
        name: str,
        noun: str,
        error: type[IrloomError],
        accept: Callable[[Any], T],
        own: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.name, self.noun, self.error, self.accept, self.own = name, noun, error, accept, own
        self._tried: dict[Offer, T | Failure] = {}
        self._warned: set[Failure] = set()
        self._seen: tuple[object, dict[str, list[Offer]]] = (None, {})

    def offers(self) -> dict[str, list[Offer]]:
        """Who offers what: more than one package to a name is a clash, told when it is used."""
        key = _environment()
        if self._seen[0] != key:
            found: dict[str, list[Offer]] = {}
            for e in entry_points(group=self.name):
                offers = found.setdefault(e.name, [])
                offers += [offer for offer in [Offer.of(e)] if offer not in offers]
            self._seen = key, found
        return self._seen[1]

    def __contains__(self, name: object) -> bool:
        return name in self.offers()

    def __iter__(self) -> Iterator[str]:
        return iter(self.offers())

    def load(self, name: str) -> T:
        """What is offered as ``name``; ``error`` where it is ambiguous, broken, or for another irloom."""
        found = self._try(name)
        if isinstance(found, Failure):
            raise found.error(self.error)
        return found

    def every(self) -> dict[str, T]:
        """All that loads; of the rest there is a ``PluginWarning`` each, once."""
        for failure in self.broken().values():
            if failure not in self._warned:
                self._warned.add(failure)
                warnings.warn(f"left out: {failure.error(self.error)}", PluginWarning, stacklevel=3)
        tried = {name: self._try(name) for name in sorted(self.offers())}
        return {name: found for name, found in tried.items() if not isinstance(found, Failure)}

    def broken(self) -> dict[str, Failure]:
        """What does not load, and why."""
        tried = {name: self._try(name) for name in sorted(self.offers())}
        return {name: found for name, found in tried.items() if isinstance(found, Failure)}

    def origin(self, name: str) -> Offer:
        """Who offers ``name``."""
        return self.offers()[name][0]

    def _try(self, name: str) -> T | Failure:
        offer, *others = self.offers()[name]
        rivals = [*(["irloom itself"] if self.own(name) else []), *map(str, (offer, *others))]
        if len(rivals) > 1:
            remove = " or ".join(f"`pip uninstall {o.package}`" for o in (offer, *others))
            return Failure(f"{self.noun} {name!r} is defined by both {rivals[0]} and {rivals[1]}", remove)
        if offer not in self._tried:
            self._tried[offer] = self._load(offer)
        return self._tried[offer]

    def _load(self, offer: Offer) -> T | Failure:
        who = f"{self.noun} {offer.name!r} of {offer}"
        mend = f"`pip install -U {offer.package}` or `pip uninstall {offer.package}`"
        if why := offer.misfit():
            return Failure(f"{who} {why}", mend)
        try:
            return self.accept(offer.entry.load())
        except Unfit as e:
            return Failure(f"{who} is {offer.entry.value}, {e}", mend)
        except (Exception, SystemExit) as e:
            return Failure(f"{who} does not load: {told(e)}", mend, line_of(e))


def fulfils(protocol: type[T]) -> Callable[[Any], T]:
    """For ``Group``: an object with all that ``protocol`` asks for, or a class that makes one."""
    wanted = sorted({*protocol.__annotations__, *(n for n in vars(protocol) if not n.startswith("_"))})

    def accept(found: Any) -> T:
        made: Any = found() if inspect.isclass(found) else found
        if missing := [name for name in wanted if not hasattr(made, name)]:
            raise Unfit(f"a {type(made).__name__} without {', '.join(missing)}: see {protocol.__module__}")
        return made

    return accept


def told(raised: BaseException) -> str:
    """What was raised, in a line: ``ValueError: no such thing``."""
    said = raised.message if isinstance(raised, IrloomError) else str(raised)
    return f"{type(raised).__name__}: {said}"


def line_of(raised: BaseException) -> str | None:
    """The innermost line, outside of irloom, of code that ``raised`` something."""
    frames = [f for f in traceback.extract_tb(raised.__traceback__) if not _machinery(f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _machinery(file: str) -> bool:
    return file.startswith("<frozen") or Path(file).is_relative_to(HERE) or "importlib" in Path(file).parts


def _environment() -> object:
    """What changes when a package is installed or removed: the folders of ``sys.path``, and their times."""
    return [(p, _changed(p)) for p in sys.path]


def _changed(folder: str) -> int:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0
