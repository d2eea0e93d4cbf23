"""A page that a sweep wrote, read back: what it tells of which release of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from irloom.zoo.core import COLUMNS, NEEDS, UNTRIED, Row

Broken = dict[tuple[str, str], list[tuple[str, str]]]
"""By column and message: the architectures, and the block and line of each where one is known."""


@dataclass
class Told:
    """One release in full (``version``, ``body``), and of others their totals and what is otherwise there."""

    version: str = ""
    body: str = ""
    totals: dict[str, str] = field(default_factory=dict[str, str])
    others: dict[str, str] = field(default_factory=dict[str, str])

    @staticmethod
    def read(text: str) -> Told:
        """The parts of a page; of one without any nothing."""
        version = re.search(r"of transformers (\S+),", text)
        rows = re.findall(r"^\| (\d+\.\S+) (\|.*)$", text, re.MULTILINE)
        body, *others = re.split(r"^## transformers (\S+)\n", text, flags=re.MULTILINE)
        start = min((at for at in (body.find("\nShare of"), body.find("\n## One by")) if at >= 0), default=0)
        return Told(
            version[1] if version else "",
            body[start:].strip(),
            dict(rows),
            {name: said.strip() for name, said in zip(others[::2], others[1::2], strict=True)},
        )

    def promised(self, version: str) -> dict[str, set[str]]:
        """The columns that each architecture passes in ``version``.

        A release of which nothing is told promises what the one in full does, as far as it has the names.
        """
        out: dict[str, set[str]] = {}
        for line in self.body.splitlines():
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            if len(cells) > len(COLUMNS) - 1 and cells[0] in ("yes", "no"):
                held = {c for c, cell in zip(COLUMNS[1:], cells, strict=False) if not cell.startswith("no")}
                out[name] = {"built"} | held
        lost = re.findall(r"^- ([^:*]+): \*(\w+)\*:", self.others.get(version, ""), re.MULTILINE)
        for names, column in lost:
            for name in names.split(", "):
                out[name] = {c for c in out.get(name, set()) if c != column and not _needs(c, column)}
        return out


def _needs(column: str, other: str) -> bool:
    """Whether ``column`` is not reached without ``other``."""
    before = NEEDS.get(column)
    return before is not None and (before == other or _needs(before, other))


def newer(version: str, other: str) -> bool:
    """Whether a release comes after another.

    >>> newer("5.23.0", "5.9.1"), newer("5.23.0", "5.23.0")
    (True, False)
    """
    one, two = (tuple(int(part) for part in re.findall(r"\d+", v)) for v in (version, other))
    return one > two


def failing(rows: Sequence[Row], promised: dict[str, set[str]] | None = None) -> Broken:
    """What does not pass, or of that only what was promised, by message."""
    out: Broken = {}
    for row in rows:
        for column in COLUMNS:
            said = getattr(row, column)
            expected = promised is None or column in promised.get(row.name, ())
            if expected and isinstance(said, str) and not said.startswith(UNTRIED):
                message, place = split(said)
                out.setdefault((column, message), []).append((row.name, place))
    return out


def split(reason: str) -> tuple[str, str]:
    """A reason without its place, and the place.

    >>> split("op `f(x)` has no translation (in model.norm (LlamaRMSNorm), modeling_llama.py:65)")
    ('op `f(x)` has no translation', 'in model.norm (LlamaRMSNorm), modeling_llama.py:65')
    """
    found = re.fullmatch(r"(.*?) \(((?:first )?in [^()]+(?:\([^()]+\))?, \S+:\d+|\S+\.py:\d+)\)", reason)
    return (found[1], found[2]) if found else (reason, "")
