"""Runs that go on for long are compared as a card at its power limit has them, whichever comes first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby, permutations

import pytest
import torch

from irloom.backends.cuda import clock

SETTLES = 15.0
"""Milliseconds in which most of the way to another clock is gone."""


@dataclass(frozen=True)
class Load:
    """Milliseconds at the full clock, and the part of that clock which the power limit leaves it."""

    took: float
    left: float

    @property
    def sustained(self) -> float:
        """Microseconds of one of the runs, after a long time."""
        return self.took / self.left * 1000 / clock.RUNS


@dataclass
class Card:
    """Begins idle, at its full clock; each load draws that clock towards its own. ``slow`` for some."""

    now: float = 0.0
    rate: float = 1.0
    slow: range = range(0)
    replays: list[Load] = field(default_factory=list)

    def replay(self, load: Load) -> None:
        took = load.took / self.rate / (0.92 if int(self.now) in self.slow else 1)
        self.now += took
        self.rate += (load.left - self.rate) * (1 - math.exp(-took / SETTLES))
        self.replays.append(load)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """In place of a GPU."""
    card = Card()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = card.now

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    class Graph:
        def __init__(self, run: Load) -> None:
            self.run = run

        def replay(self) -> None:
            card.replay(self.run)

    monkeypatch.setattr(clock, "_captured", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return card


LOADS = Load(1.0, 0.75), Load(1.08, 0.85), Load(1.05, 0.7)
"""The first is fastest in a burst, the second when it is hot."""


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_the_order_of_candidates_counts_for_little(card: Card, order: tuple[int, ...]) -> None:
    loads = [LOADS[i] for i in order]
    took = clock.sustained(loads)  # pyright: ignore[reportArgumentType]
    assert took == pytest.approx([load.sustained for load in loads], rel=0.03)
    assert took.index(min(took)) == order.index(1)


def test_what_is_close_goes_again_from_the_last_to_the_first(card: Card) -> None:
    one, far, other = Load(1.0, 0.8), Load(1.3, 0.75), Load(1.05, 0.85)
    clock.sustained([one, far, other])  # pyright: ignore[reportArgumentType]
    told, heated, first, second = [one, far, other], one, [one, far, other], [other, one]
    assert [load for load, _ in groupby(card.replays)] == [
        load for load, _ in groupby([*told, heated, *first, *second])
    ]


@pytest.mark.parametrize("start", range(0, 400, 40))
def test_a_card_that_is_slow_for_a_while_changes_no_choice(card: Card, start: int) -> None:
    card.slow = range(start, start + 80)
    took = clock.sustained([Load(1.0, 0.8), Load(1.04, 0.8)])  # pyright: ignore[reportArgumentType]
    assert took[0] < took[1]


def test_it_takes_no_longer_than_said(card: Card) -> None:
    clock.sustained(LOADS)  # pyright: ignore[reportArgumentType]
    each = clock.LEAD + clock.TIMED
    assert card.now < (clock.HEAT + 2 * len(LOADS) * (each + 2)) / 0.7
