"""A reproducer: one file of IR text that says on which program a pass fails, and how to see it again.

    # irloom 1   model: tiny   after: canonicalize, raise
    # reproducer 1
    #   pipeline: fuse-norm
    #   change: main.s: AddRmsNorm
    #   failure: output 0, ...: error 0.13, allowed 2e-05
    #   session: 17 2 0; 16 0 1; 1 0 1
    #   seed: 0
    #   weights: random
    #   versions: irloom 0.1.0, torch 2.13.0
    #   digest: 6d0c...

It is IR text like any other, so every command reads it. Where values matter, ``weights`` names a safetensors
file beside it. A file of another format or version, one that was cut off, and one whose weights are not there
are refused with the line that says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from irloom import __version__
from irloom.ir.checkpoint import Checkpoint, SafetensorsCheckpoint
from irloom.ir.errors import CheckpointError, IRError
from irloom.ir.files import read_text, write_whole
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.ir.weight_expr import tensor_names

from .sample import bindings
from .session import Session

FORMAT = 1
MARK = "# reproducer"
NEEDED = ("pipeline", "change", "failure", "session", "seed", "weights", "versions", "digest")
RANDOM = "random"
LARGEST = 1 << 28
"""Bytes of weights that are worth a file beside a reproducer."""


@dataclass(frozen=True)
class Reproducer:
    """A program, the pass that fails on it as pipeline text, and what it was seen with.

    ``weights`` are tensors by name; None: random ones, drawn with the seed of the ``session``.
    """

    module: Module
    pipeline: str
    change: str
    failure: str
    session: Session
    weights: Checkpoint | None = None

    def write(self, path: Path) -> None:
        """Write the file, and the weights beside it; each is whole or not there, the text comes last."""
        beside = RANDOM
        if self.weights is not None:
            tensors = _tensors(self.module, self.weights)
            beside = path.with_suffix(".safetensors").name
            write_whole(path.with_name(beside), _saved(tensors))
        write_whole(path, self.text(beside))

    def text(self, beside: str = RANDOM) -> str:
        """The file's text; ``beside`` is the name of the file of weights."""
        title, _, program = show(self.module).partition("\n")
        facts = {
            "pipeline": self.pipeline,
            "change": self.change,
            "failure": self.failure,
            "session": self.session.text(),
            "seed": str(self.session.seed),
            "weights": beside,
            "versions": f"irloom {__version__}, torch {torch.__version__}",
        }
        head = [title, f"{MARK} {FORMAT}", *(f"#   {k}: {' '.join(v.split())}" for k, v in facts.items())]
        return "\n".join([*head, f"#   digest: {_digest([*head, program])}", program])


def is_reproducer(path: Path) -> bool:
    """Whether a file is one, by its second line."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(1 << 16).startswith(b"# irloom") and file.readline(64).startswith(MARK.encode())


def read_reproducer(path: Path, any_version: bool = False) -> Reproducer:
    """Read a file. ``IRError`` where it is of another format or version (unless ``any_version``), cut off or
    edited; ``CheckpointError`` where its weights are not there.
    """
    lines = read_text(path).split("\n")
    if lines[1].removeprefix(MARK).strip() != str(FORMAT):
        _refuse(path, 2, f"{lines[1]!r}, but this irloom reads format {FORMAT}", "update irloom")
    facts: dict[str, tuple[int, str]] = {}
    at = 2
    while at < len(lines) and lines[at].startswith("#   "):
        name, _, value = lines[at].removeprefix("#   ").partition(": ")
        facts[name] = at + 1, value
        at += 1
    for name in NEEDED:
        if name not in facts:
            _refuse(path, at + 1, f"a reproducer says `{name}` here", "the file was cut off or edited")
    line, said = facts["versions"]
    if not any_version and said.split(",")[0] != f"irloom {__version__}":
        _refuse(
            path, line, f"seen with {said}, this is irloom {__version__}", "--any-version tries all the same"
        )
    line, said = facts["digest"]
    if said and said != _digest([*lines[: line - 1], "\n".join(lines[at:])]):
        why = "it was cut off or edited"
        _refuse(
            path,
            line,
            "the text is not the one that was written",
            f"{why}; `digest:` alone runs an edited one",
        )
    module = parse("\n".join([lines[0], *[""] * (at - 1), *lines[at:]]))
    try:
        session = Session.read(facts["session"][1], int(facts["seed"][1]))
    except ValueError as e:
        _refuse(path, facts["session"][0], f"session and seed cannot be read: {e}", "the file was edited")
    weights = _beside(path, *facts["weights"], module)
    pipeline, change, failure = (facts[k][1] for k in ("pipeline", "change", "failure"))
    return Reproducer(module, pipeline, change, failure, session, weights)


def _beside(path: Path, line: int, name: str, m: Module) -> Checkpoint | None:
    """The weights beside a file; ``CheckpointError`` names the first tensor that is not there."""
    if name == RANDOM:
        return None
    try:
        found = SafetensorsCheckpoint(path.parent / name)
        for tensor in _names(m):
            found.dims(tensor)
    except CheckpointError as e:
        raise e.at(f"  --> {path}:{line}") from None
    return found


def _names(m: Module) -> list[str]:
    return list(dict.fromkeys(n for p, i in bindings(m) if p.weight for n in tensor_names(p.weight, i)))


def _tensors(m: Module, weights: Checkpoint) -> dict[str, torch.Tensor]:
    names = _names(m)
    total = sum(weights.elem(n).bits // 8 * torch.Size(weights.dims(n)).numel() for n in names)
    if total > LARGEST:
        raise CheckpointError(
            f"the reproducer's weights are {total / 1e6:.0f} MB, it may have {LARGEST / 1e6:.0f} MB",
            hint="bisect with --random, or with fewer --layers",
        )
    return {n: weights.read(n).clone().contiguous() for n in names}


def _saved(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _refuse(path: Path, line: int, why: str, hint: str) -> NoReturn:
    raise IRError(f"{path.name}: {why}", hint=hint).at(f"  --> {path}:{line}")


def _digest(lines: list[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
