"""The frontend for irloom's own text: a file that starts with ``# irloom``."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from irloom.frontends.core import TraceOptions
from irloom.frontends.facts import DEFAULT_CONTEXT, Facts
from irloom.ir.errors import CheckpointError
from irloom.ir.files import read_text
from irloom.ir.graph import Module
from irloom.ir.parse import parse

MARK = b"# irloom"


class Text:
    """A program as text. It brings no weights and no tokenizer."""

    name = "text"

    def claims(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK

    def trace(self, path: Path, options: TraceOptions) -> Module:
        return parse(read_text(path))

    def checkpoint(self, path: Path, options: TraceOptions) -> NoReturn:
        raise CheckpointError(
            f"{path}: a program's text has no weights", hint="give the model that it came from"
        )

    def facts(self, path: Path) -> Facts:
        return Facts((), DEFAULT_CONTEXT)

    def tokenizer(self, path: Path) -> NoReturn:
        raise CheckpointError(f"{path}: a program's text has no tokenizer", hint="give prompts as token ids")
