"""What ``cpu.py`` measures: requests of random tokens, and figures of their answers. Standard library."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """A prompt of random tokens, and how many tokens to answer."""

    prompt: list[int]
    new: int


@dataclass(frozen=True)
class Row:
    """A measured quantity: its requests, how a run's answer becomes a number, whether more is better."""

    name: str
    form: str
    more: bool

    def value(self, answer: dict[str, Any], requests: list[Request]) -> float:
        if self.name == "decode":
            return (requests[0].new - 1) / (answer["last"] - answer["first"])
        if self.name == "first":
            return 1e3 * answer["first"]
        return sum(len(r.prompt) + r.new for r in requests) / answer["seconds"]


DECODE = Row("decode", "{:,.1f}", more=True)
FIRST = Row("first", "{:,.1f}", more=False)
TOGETHER = Row("together", "{:,.1f}", more=True)
ROWS = (DECODE, FIRST, TOGETHER)


class Load:
    """The requests of every run: the same for all contenders, new for every repeat."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        draw = random.Random(args.seed)
        lengths = [
            (draw.randint(16, args.most_prompt), draw.randint(8, args.most_new)) for _ in range(args.requests)
        ]
        self.mixed = lengths
        self.longest = max([args.first_prompt + 1, 16 + args.new, *(p + n for p, n in lengths)])

    def requests(self, row: Row, repeat: int) -> list[Request]:
        a = self.args
        shapes = {"decode": [(16, a.new)], "first": [(a.first_prompt, 1)], "together": self.mixed}[row.name]
        draw = random.Random(f"{a.seed} {row.name} {repeat}")
        return [Request([draw.randrange(256, a.vocab) for _ in range(p)], n) for p, n in shapes]

    def warm(self) -> list[list[Request]]:
        """Each row once, the many requests with short answers; first of all as long as any request gets."""
        long = Request(self.requests(FIRST, -1)[0].prompt[:1] * (self.longest - 4), 4)
        mixed = [Request(r.prompt, min(r.new, 8)) for r in self.requests(TOGETHER, -1)]
        return [[long], self.requests(DECODE, -1), self.requests(FIRST, -1), mixed]
