"""Programs as tests. A heading is a test; the words after ``py`` say how its block is checked.

    ```py                       the program under test
    ```py canonicalize, raise   what it looks like after that pipeline
    ```near                     the near misses of the pipeline above, one a line
    ```error canonicalise       the whole message when that pipeline is refused
    ```py error                 a program that must be refused
    ```error                    ... and the whole message

Numbers come first: after each pass the program before and the program after run on the same seeded inputs.
Only when they agree is the text compared, and only then does ``--update`` rewrite it. A pass in a file of its
own beside the test, ``quiet.py`` beside ``quiet.md``, needs no installing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.ir.verify import verify
from irloom.passes import PASSES, load_plugin, parse_pipeline, run_pipeline
from irloom.passes.check import compare


class Differs(Exception):
    """A block is not what was produced, or the numbers of a pass differ."""


@dataclass
class Block:
    """A fenced block: the words behind the fence, its text, and the lines of the file that the text takes."""

    words: str
    text: str
    start: int
    stop: int


class Doc(pytest.File):
    """A file of programs."""

    def collect(self) -> Iterator[Case]:
        beside = self.path.with_name(f"{self.path.stem.replace('-', '_')}.py")
        if beside.is_file() and self.path.stem not in PASSES:
            load_plugin(beside)
        for i, (title, line, blocks) in enumerate(headings(self.path)):
            if any(b.words.split(" ")[0] == "py" for b in blocks):
                yield Case.from_parent(self, name=title, line=line, index=i)


def headings(path: Path) -> list[tuple[str, int, list[Block]]]:
    """The headings of a file: title, line, and the blocks below it. A fence of four marks may hold fences."""
    out: list[tuple[str, int, list[Block]]] = []
    fence = None
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        marks = line[: len(line) - len(line.lstrip("`"))]
        if fence is not None:
            opened, words, start = fence
            if line.strip() == opened:
                out[-1][2].append(Block(words, "\n".join(lines[start:i]), start, i))
                fence = None
        elif len(marks) >= 3:
            fence = (marks, line.removeprefix(marks).strip(), i + 1)
        elif title := re.match(r"#+ (.*)", line):
            out.append((title[1], i, []))
    return out


class Case(pytest.Item):
    """The programs under one heading."""

    def __init__(self, line: int, index: int, **kw: Any) -> None:
        super().__init__(**kw)
        self.line, self.index = line, index

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, (Differs, IrloomError)):
            return f"{self.path}:{self.line + 1}: {self.name}\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def runtest(self) -> None:
        program, said = Module({}), ""
        for at in range(len(self.blocks())):
            block = self.blocks()[at]  # read anew: an update moves lines
            kind, _, words = block.words.partition(" ")
            if kind == "py" and words == "error":
                said = refusal(lambda text=block.text: verify(parse(text)))
            elif kind == "error":
                said = refusal(lambda p=program, w=words: run_pipeline(p, w)) if words else said
                self.same(at, said)
            elif kind == "near":
                self.same(at, said)
            elif kind == "py" and not words:
                program = parse(block.text)
                verify(program)
            elif kind == "py":
                assert program.funcs, "the program under test comes first"
                said = self.check(at, program, words)

    def blocks(self) -> list[Block]:
        return headings(self.path)[self.index][2]

    def check(self, at: int, program: Module, pipeline: str) -> str:
        """Run the pipeline, compare numbers after each pass, then the text; the near misses."""
        after, record = run_pipeline(program, pipeline)
        for step, p in zip(record.steps, parse_pipeline(pipeline), strict=True):
            report = compare(step.before, step.after, p)
            if not report.ok:
                raise Differs(f"numbers differ after {step.name}: {report}\n\n{step.text_after}")
            if parse(step.text_after) != step.after:
                raise Differs(f"the text after {step.name} does not read back:\n\n{step.text_after}")
        declared = after.quants or after.mesh or after.buffers or after.consts
        self.same(at, show(after, header=bool(declared)))
        return "\n".join(f"{name}: {miss}" for name, miss in record.near_misses)

    def same(self, at: int, got: str) -> None:
        """Compare a block with what was produced, or rewrite it."""
        block = self.blocks()[at]
        want, got = block.text.strip(), got.strip()
        if want == got:
            return
        if self.config.getoption("irloom_update"):
            lines = self.path.read_text().splitlines()
            lines[block.start : block.stop] = got.splitlines()
            self.path.write_text("\n".join(lines) + "\n")
            return
        rows = difflib.unified_diff(
            want.splitlines(), got.splitlines(), "expected", "produced", lineterm="", n=50
        )
        raise Differs("\n".join(rows))


def refusal(do: Callable[[], object]) -> str:
    """The message of the error that ``do`` raises."""
    with pytest.raises(IrloomError) as caught:
        do()
    return str(caught.value)
