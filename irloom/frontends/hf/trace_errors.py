"""Why a model could not be captured, said as its author needs it: the line, the block, and what to write."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from irloom.frontends.hf.lengths import Settled
from irloom.frontends.hf.remote import source_of
from irloom.ir.errors import IrloomError, TraceError

OTHERS = (str(PurePath(torch.__file__).parent), str(PurePath(__file__).parent))
"""Where the code of torch and of this frontend lies: no line of a model."""

DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
)
"""What torch raises where Python asks for the values of a tensor."""

GUIDE = 'docs/bring_up.md, "Replace a block"'


@dataclass(frozen=True)
class Place:
    """A line of a model's code, and the module whose code it is part of."""

    path: str
    block: str
    takes: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"in {self.path} ({self.block}), {self.file}:{self.line}"

    @property
    def code(self) -> str:
        """The line itself."""
        return linecache.getline(self.file, self.line).strip()

    def replace(self) -> str:
        """How a function takes the place of this block."""
        return f'replace the block: @irloom.replaces("{self.block}") on a function {self.takes}, see {GUIDE}'


def trace_error(error: BaseException, model: nn.Module) -> IrloomError:
    """The error of a failed capture as a ``TraceError`` that says where in ``model`` it happened.

    Where the code asks for a tensor's values, it names the smallest block to replace.
    """
    chain = list(_chain(error))
    places = [(e, place) for e in chain if (place := _place(e, model))]
    origin, place = places[-1] if places else (error, None)
    found = next((e for e in chain if isinstance(e, IrloomError)), None)
    found = _explained(origin, place, model) if found is None or isinstance(origin, Settled) else found
    return found.at(str(place)) if place and str(place) not in found.places else found


def origin(error: BaseException) -> str:
    """Where an error was raised: ``in LlamaMLP, modeling_llama.py:155``, the innermost line of model code.

    Without a model in the traceback it is the innermost line outside of torch and this frontend.
    """
    owner, found = "", ("", 0, "")
    for frame, line in traceback.walk_tb(error.__traceback__):
        this = frame.f_locals.get("self")
        owner = type(this).__name__ if isinstance(this, nn.Module) else owner
        if not frame.f_code.co_filename.startswith(OTHERS):
            found = (PurePath(frame.f_code.co_filename).name, line, owner)
    file, line, block = found
    return f"{f'in {block}, ' if block else ''}{file}:{line}" if file else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, then what caused it, and what caused that."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def _explained(error: BaseException, place: Place | None, model: nn.Module) -> TraceError:
    kind = type(error).__name__
    if kind in DATA_DEPENDENT or ".numpy()" in str(error):
        what = f"`{place.code}` depends on the values of a tensor" if place else "it depends on values"
        return TraceError(
            f"{type(model).__name__} cannot be traced: {what}, and a program is made without values",
            hint=place.replace() if place else f"see {GUIDE}",
        )
    if isinstance(error, Settled) and place:
        what = f"`{place.code}` does not hold for every number of tokens ({error})"
        return TraceError(f"{type(model).__name__} cannot be traced: {what}", hint=place.replace())
    first = (str(error).strip() or kind).splitlines()[0]
    whose = "the model's own code failed; see whether it runs on [1, T] token ids without a cache"
    return TraceError(f"{kind} while tracing: {first}", hint=whose)


def _place(error: BaseException, model: nn.Module) -> Place | None:
    """The innermost line of model code in a traceback, with the innermost module around it."""
    paths = {id(module): path for path, module in model.named_modules()}
    owner: Any = None
    found: Place | None = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, this = frame.f_code.co_filename, frame.f_locals.get("self")
        own = not file.startswith(OTHERS)
        if id(this) in paths:
            owner = this
        if own and owner is not None:
            found = place_of(model, paths[id(owner)], file, line)
    return found


def place_of(model: nn.Module, path: str, file: str, line: int) -> Place:
    """A line as a place in the smallest block around ``path`` that is not torch's own.

    Code that the library copied is named where the user has it.
    """
    block = model.get_submodule(path)
    while path and type(block).__module__.startswith("torch."):
        path = path.rpartition(".")[0]
        block = model.get_submodule(path)
    name = type(block).__name__
    return Place(path or name, name, str(inspect.signature(type(block).forward)), source_of(file), line)
