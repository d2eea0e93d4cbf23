"""Optimization profiles: which sizes of a step plans are made for, and at which they are best.

A network has a profile for steps that decode, one new token a slot, and some for steps that read chunks of
prompts: few slots with many tokens, to many with few. Any sizes within a profile run without a rebuild.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from irloom.backends.core import Limits
from irloom.backends.slots import Shape, shapes
from irloom.ir.dims import symbols
from irloom.ir.elem import SEQS
from irloom.ir.errors import RequestError

from .network import Network, Tensor, size_of
from .program import Program

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """What a symbol may be, both ends included, and the size that kernels are chosen for."""

    low: int
    best: int
    high: int


@dataclass(frozen=True)
class Ranges:
    """The sizes a program is planned for, by ``kv-plan``: tokens of a step, sequences of a step, tokens of a
    sequence (None where these lie in pages). ``tokens`` and ``seqs`` are the symbols of the first two. Where
    slots are not ``aligned`` every step begins at the first.
    """

    max_tokens: int
    max_seqs: int
    max_context: int | None
    tokens: str = "T"
    seqs: str = "S"
    aligned: bool = True

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What steps over chunks may be like."""
        every = (self.max_seqs, self.max_tokens)
        return shapes(*every) if self.aligned else (every,)

    @classmethod
    def of(cls, program: Program) -> Ranges:
        """From the ranges of the dims of a program."""
        given = next((p.type.dims for p in program.module.main.data if p.type.elem == SEQS), ())
        tokens, seqs = map(str, given) if len(given) == 2 else ("T", "S")
        (_, rows), (_, sequences), (_, length) = (
            program.dims.get(name, (1, 1)) for name in (tokens, seqs, "L")
        )
        context = length - rows if program.linear else None
        return cls(rows, sequences, context, tokens, seqs, program.aligned)

    def fit(self, limits: Limits) -> Limits:
        """``limits``, where those that nobody chose go no further than the plans do."""
        usual = Limits()
        tokens, seqs = limits.max_tokens, limits.max_seqs
        return replace(
            limits,
            max_tokens=min(tokens, self.max_tokens) if tokens == usual.max_tokens else tokens,
            max_seqs=min(seqs, self.max_seqs) if seqs == usual.max_seqs else seqs,
        )

    def check(self, limits: Limits, max_context: int, rebuild: str) -> None:
        """``RequestError`` where ``limits`` go past what the plans take; it says which, and how far."""
        asked = {
            "max_tokens": (limits.max_tokens, self.max_tokens, f"{self.tokens}, tokens of a step"),
            "max_seqs": (limits.max_seqs, self.max_seqs, f"{self.seqs}, sequences of a step"),
            "context": (max_context, self.max_context, "L, tokens of a sequence"),
        }
        for option, (value, most, dim) in asked.items():
            if most is not None and value > most:
                limit = "max_context" if option == "context" else option
                wider = {name: max(v, m or v) for name, (v, m, _) in asked.items()}
                options = ", ".join(f"{name}={n}" for name, n in wider.items())
                raise RequestError(
                    f"{limit} is {value:,}, but the engine's profiles end at {most:,} (dim {dim})",
                    hint=f"open it with {limit}={most}, or build it again: {rebuild} "
                    f"--with 'kv-plan(layout=linear, {options})'",
                )


@dataclass(frozen=True)
class Profile:
    """A name, and the range of every symbol."""

    name: str
    ranges: Mapping[str, Range]

    def shapes(self, t: Tensor) -> tuple[Dims, Dims, Dims]:
        """The least, the best and the greatest dims of an input."""
        low, best, high = (
            {s: getattr(r, which) for s, r in self.ranges.items()} for which in ("low", "best", "high")
        )
        return _dims(t, low), _dims(t, best), _dims(t, high)

    def excess(self, sizes: Mapping[str, int]) -> str | None:
        """Which of ``sizes`` it does not take, for people; None where it takes all."""
        for symbol, n in sizes.items():
            r = self.ranges.get(symbol)
            if r is not None and not r.low <= n <= r.high:
                return f"{symbol} is {n}, and the profile {self.name} takes {r.low} to {r.high}"
        return None

    def to_json(self) -> dict[str, Any]:
        """For an engine's plan.json."""
        return asdict(self)


def profiles(net: Network, r: Ranges) -> tuple[Profile, ...]:
    """The profiles of a network: for steps that decode, and for each shape of chunks, where these differ."""
    slots, length = r.max_seqs, (r.max_context or 1) + r.max_tokens
    decoding = min(r.max_tokens, slots)
    every = Range(1, length, length)
    decode = {
        r.tokens: Range(1, decoding, decoding), r.seqs: Range(1, decoding, decoding),
        "B": Range(1, slots, slots), "N": Range(1, 1, 1), "L": every,
    }  # fmt: skip
    chunks = {
        f"chunk {most}x{width}": {
            r.tokens: Range(1, r.max_tokens, r.max_tokens), r.seqs: Range(1, 1, decoding),
            "B": Range(1, 1, most), "N": Range(1, width, width), "L": every,
        }
        for most, width in r.shapes
    }  # fmt: skip
    made = [
        Profile(name, {s: x for s, x in ranges.items() if s in net.symbols})
        for name, ranges in ({"decode": decode} | chunks).items()
    ]
    different = tuple(p for i, p in enumerate(made) if p.ranges not in [q.ranges for q in made[:i]])
    return different if len(different) > 1 else (Profile("any", made[0].ranges),)


def choose(made: tuple[Profile, ...], sizes: Mapping[str, int]) -> int:
    """The number of the first profile that takes ``sizes``; ``RequestError`` says why the last does not."""
    why = None
    for i, profile in enumerate(made):
        if (why := profile.excess(sizes)) is None:
            return i
    raise RequestError(f"no profile of the engine takes this step: {why}", hint="build it with wider limits")


def _dims(t: Tensor, sizes: Mapping[str, int]) -> Dims:
    assert all(s in sizes for d in t.dims for s in symbols(d)), f"{t}: a symbol without a range"
    return tuple(size_of(d, sizes) for d in t.dims)
