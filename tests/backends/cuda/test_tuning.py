"""A choice is timed once, kept, and read again; what cannot run is passed over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from irloom.backends.cuda.tuning import Tuner, untimed


def seconds(run: Callable[[], object], least: float) -> float:
    """A clock for the CPU."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def pause(candidate: float) -> None:
    """A candidate takes as long as it says; a negative one cannot run."""
    if candidate < 0:
        raise ValueError(f"{candidate} is too much shared memory")
    time.sleep(candidate)


CANDIDATES = [0.05, -1.0, 0.001, 0.02]


def test_the_fastest_that_runs_is_chosen(tmp_path: Path) -> None:
    assert Tuner(tmp_path / "a.json", seconds).choose("pause", (8, "bf16"), CANDIDATES, pause) == 0.001


def test_a_second_start_reads_the_choice_and_runs_nothing(tmp_path: Path) -> None:
    Tuner(tmp_path / "a.json", seconds).choose("pause", (8,), CANDIDATES, pause)
    ran: list[float] = []
    assert Tuner(tmp_path / "a.json", seconds).choose("pause", (8,), CANDIDATES, ran.append) == 0.001
    assert not ran


def test_each_key_has_its_own_choice(tmp_path: Path) -> None:
    tuner = Tuner(tmp_path / "a.json", seconds)
    assert tuner.choose("pause", (8,), [0.02, 0.001], pause) == 0.001
    assert tuner.choose("pause", (16,), [0.001, 0.02], pause) == 0.001
    assert len(Tuner(tmp_path / "a.json", seconds).known) == 2


def test_a_choice_that_is_no_candidate_any_more_is_made_again(tmp_path: Path) -> None:
    Tuner(tmp_path / "a.json", seconds).choose("pause", (8,), CANDIDATES, pause)
    assert Tuner(tmp_path / "a.json", seconds).choose("pause", (8,), [0.03, 0.002], pause) == 0.002


def test_choices_of_two_processes_are_both_kept(tmp_path: Path) -> None:
    one, two = (Tuner(tmp_path / "a.json", seconds) for _ in range(2))
    assert not one.known and not two.known
    one.keep({"a": "1"})
    two.keep({"b": "2"})
    assert Tuner(tmp_path / "a.json", seconds).known == {"a": "1", "b": "2"}


def test_what_an_engine_brings_fills_what_is_unknown(tmp_path: Path) -> None:
    """Also in a process that begins later: an older engine undoes nothing that was timed since."""
    Tuner(tmp_path / "a.json", seconds).keep({"a": "new"})
    Tuner(tmp_path / "a.json", seconds).fill({"a": "old", "b": "brought"})
    assert Tuner(tmp_path / "a.json", seconds).known == {"a": "new", "b": "brought"}


def test_a_broken_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"half')
    assert Tuner(tmp_path / "a.json", seconds).choose("pause", (8,), CANDIDATES, pause) == 0.001


def test_when_all_fail_the_first_error_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"-1\.0 is too much"):
        Tuner(tmp_path / "a.json", seconds).choose("pause", (8,), [-1.0, -2.0], pause)


def test_what_comes_last_is_taken_when_all_fail_and_is_not_timed(tmp_path: Path) -> None:
    """One candidate alone is tried, too. What the machine has found then is known from there on."""
    for file, candidates in (tmp_path / "a.json", [-1.0, -2.0]), (tmp_path / "b.json", [-1.0]):
        ran = list[float]()

        def run(candidate: float, ran: list[float] = ran) -> None:
            ran.append(candidate)
            pause(candidate)

        assert Tuner(file, seconds).choose("pause", (8,), candidates, run, last=0.02) == 0.02
        assert sorted(ran) == sorted(candidates)
        tuner = Tuner(file, seconds)
        for _ in range(2):
            assert tuner.choose("pause", (8,), candidates, ran.append, last=0.02) == 0.02
        assert len(ran) == len(candidates)


def test_what_comes_last_is_not_taken_while_others_run(tmp_path: Path) -> None:
    """Nor where they only lack memory, of which there is more another time."""
    tuner = Tuner(tmp_path / "a.json", seconds)
    assert tuner.choose("pause", (8,), [-1.0, 0.02], pause, last=0.001) == 0.02
    assert tuner.choose("pause", (16,), [0.02], pause, last=0.001) == 0.02

    def short(candidate: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        tuner.choose("pause", (32,), [0.02, 0.01], short, last=0.001)


def test_a_choice_made_while_memory_was_short_is_not_kept(tmp_path: Path) -> None:
    def short(candidate: float) -> None:
        if candidate == 0.001:
            raise torch.OutOfMemoryError("CUDA out of memory")
        pause(candidate)

    tuner = Tuner(tmp_path / "a.json", seconds)
    assert tuner.choose("pause", (8,), CANDIDATES, short) == 0.02
    assert not tuner.known and tuner.settled == {("pause", (8,)): 0.02}


def test_where_nothing_can_be_timed_the_first_stands_in_and_nothing_is_kept(tmp_path: Path) -> None:
    tuner = Tuner(tmp_path / "a.json", None)
    assert tuner.choose("pause", (8,), CANDIDATES, pause) == 0.05
    assert not list(tmp_path.iterdir())


def test_where_others_would_disturb_the_clock_the_first_stands_in(tmp_path: Path) -> None:
    tuner = Tuner(tmp_path / "a.json", seconds)
    with untimed():
        assert tuner.choose("pause", (8,), CANDIDATES, pause) == CANDIDATES[0]
    assert tuner.choose("pause", (8,), CANDIDATES, pause) == 0.001


def test_a_choice_on_the_way_of_another_is_made_first_and_once(tmp_path: Path) -> None:
    tuner, ran = Tuner(tmp_path / "a.json", seconds), []

    def outer(candidate: float) -> None:
        ran.append(tuner.choose("inner", (), [0.02, 0.001], pause))
        pause(candidate)

    assert tuner.choose("outer", (), [0.05, 0.01, 0.02], outer) == 0.01
    assert set(ran) == {0.001}


def test_what_is_known_is_settled_and_a_stand_in_is_not(tmp_path: Path) -> None:
    timed, untimed = Tuner(tmp_path / "a.json", seconds), Tuner(tmp_path / "b.json", None)
    timed.choose("pause", (8,), CANDIDATES, pause)
    untimed.choose("pause", (8,), CANDIDATES, pause)
    assert timed.settled == {("pause", (8,)): 0.001} and not untimed.settled


class Card:
    """Runs that tell how many microseconds they take: first in a burst, then for as long as it takes."""

    def __init__(self) -> None:
        self.sustained: list[list[tuple[float, float]]] = []

    def tuner(self, file: Path) -> Tuner:
        return Tuner(file, lambda run, _: told(run)[0], self.long)

    def long(self, runs: Sequence[Callable[[], object]]) -> list[float]:
        self.sustained.append([told(run) for run in runs])
        return [run[1] for run in self.sustained[-1]]


def told(run: Callable[[], object]) -> tuple[float, float]:
    took = run()
    assert isinstance(took, tuple)
    return took


def same(took: tuple[float, float]) -> tuple[float, float]:
    """A candidate is what it takes."""
    return took


GREEDY, SPARING, HOPELESS = (100.0, 140.0), (110.0, 120.0), (130.0, 110.0)
"""The first is fastest until the power limit acts; the last one's burst is too slow for it to be tried."""


def test_what_multiplies_for_seconds_is_chosen_by_what_it_then_takes(tmp_path: Path) -> None:
    card = Card()
    candidates = [GREEDY, SPARING, HOPELESS]
    assert card.tuner(tmp_path / "a.json").choose("p", (8,), candidates, same, heavy=True) == SPARING
    assert card.sustained == [[GREEDY, SPARING]]


def test_what_does_not_is_chosen_by_a_burst(tmp_path: Path) -> None:
    card = Card()
    tuner = card.tuner(tmp_path / "a.json")
    assert tuner.choose("light", (8,), [SPARING, GREEDY], same) == GREEDY
    short = [(9.0, 14.0), (10.0, 12.0)]
    assert tuner.choose("short", (8,), short, same, heavy=True) == short[0]
    alone = [(200.0, 240.0), GREEDY]
    assert tuner.choose("alone", (8,), alone, same, heavy=True) == GREEDY
    assert not card.sustained


def test_noise_decides_nothing(tmp_path: Path) -> None:
    near = [(100.0, 100.0), (100.0, 99.0), (100.0, 98.5)]
    assert Card().tuner(tmp_path / "a.json").choose("p", (8,), near, same, heavy=True) == near[0]


def test_what_is_settled_is_not_looked_up_again(tmp_path: Path) -> None:
    """Unless a rehearsal wants to see all candidates."""
    tuner, ran = Tuner(tmp_path / "a.json", seconds), list[float]()
    tuner.choose("pause", (8,), CANDIDATES, pause)
    tuner.known.clear()
    assert tuner.choose("pause", (8,), CANDIDATES, ran.append) == 0.001
    assert not ran
    with tuner.rehearsal():
        tuner.choose("pause", (8,), CANDIDATES, ran.append)
    assert ran == CANDIDATES
