"""What the sweep says of one architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

COLUMNS = ("built", "traced", "logits", "ragged", "decode", "compiled", "raised")
"""In the order in which they are reached."""

NEEDS = {
    "traced": "built", "logits": "traced", "ragged": "logits", "decode": "ragged", "compiled": "decode",
    "raised": "traced",
}  # fmt: skip
"""The column without which another cannot be reached."""

Outcome = bool | str
"""True, the reason why not, or false: not tried."""

UNTRIED = "not reached: "


@dataclass
class Row:
    """One architecture, a column per thing that is asked of it: true, why not, or false (not tried).

    ``built``: the library makes a tiny model of it and runs it. ``traced``: irloom makes a program of it.
    ``logits``: the program's logits are the library's, at other lengths than traced. ``ragged``: so are those
    of sequences packed in one batch. ``decode``: so are those of an engine of the reference backend, which
    serves several requests in chunks, token by token, evicted and resumed, and from cached prefixes.
    ``compiled``: and those of an engine of the CPU backend. ``raised``: model ops do all but 1 % of the
    FLOPs, of the tiny model or else of one with the widths of the library's default config.

    ``errors`` are the largest differences found, relative to the largest logit; ``flops_in_model_ops`` is the
    share of the tiny model, ``flops_at_full_size`` that in default sizes where it was needed; ``model_ops``
    and ``tensor_ops`` count the nodes of the raised program, ``near_misses`` are what almost matched and why.
    """

    name: str
    model_class: str = ""
    built: Outcome = False
    traced: Outcome = False
    logits: Outcome = False
    ragged: Outcome = False
    decode: Outcome = False
    compiled: Outcome = False
    raised: Outcome = False
    flops_in_model_ops: float | None = None
    flops_at_full_size: float | None = None
    model_ops: dict[str, int] = field(default_factory=dict[str, int])
    tensor_ops: dict[str, int] = field(default_factory=dict[str, int])
    near_misses: list[str] = field(default_factory=list[str])
    errors: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0

    @classmethod
    def failed(cls, name: str, reason: str) -> Self:
        """An architecture of which nothing can be said but why."""
        row = cls(name, built=reason)
        row.settle()
        return row

    def settle(self, wanted: Collection[str] = COLUMNS) -> None:
        """Say of every ``wanted`` column without an outcome what kept it from being reached."""
        for column, needed in NEEDS.items():
            if column in wanted and getattr(self, column) is False:
                before = getattr(self, needed)
                why = before if isinstance(before, str) and before.startswith(UNTRIED) else UNTRIED + needed
                setattr(self, column, why)

    @property
    def passed(self) -> bool:
        """Whether every column is true."""
        return all(getattr(self, column) is True for column in COLUMNS)

    def to_json(self) -> dict[str, Any]:
        """As ``irloom zoo --json`` prints it."""
        return asdict(self)

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Self:
        """The row that ``to_json`` was made of."""
        return cls(**{f.name: made[f.name] for f in fields(cls) if f.name in made})
