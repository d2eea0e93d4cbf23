"""Steps over slots, for batches as the runtime makes them, on a cache that keeps whose entry is where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from irloom.backends.slots import Slots, SlotStep, length, shapes, whole
from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, Sampled
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams

GARBAGE = -1


class SlotEngine:
    """Obeys ``Engine``; a cache entry is the token that was stored. Every step checks what it may rely on."""

    vocab = 1000

    def __init__(self, slots: int, max_tokens: int, max_context: int, packed: bool, filled: bool) -> None:
        self.max_tokens, self.max_seqs, self.max_context = max_tokens, slots, max_context
        self.length = length(max_context, max_tokens)
        self.pools = (Pool("full", None, self.length, 0, slots),)
        self.shapes = shapes(slots, max_tokens)
        self.slots, self.packed = Slots(slots, filled=filled, shapes=self.shapes), packed
        self.cache = np.full((slots, self.length), GARBAGE)
        self.told: dict[int, list[int]] = {}  # of the slot's owner, all tokens so far
        self.fails = False

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        steps = self.slots.steps(batch, self.packed)
        assert sorted(s for step in steps for s in step.sequences) == list(range(len(batch.context)))
        assert len(steps) == 1 or not self.packed
        for s, slot in enumerate(batch.tables[0][:, 0].tolist()):
            a, b = batch.starts[s : s + 2]
            before = [] if batch.context[s] == b - a else self.told[slot]
            self.told[slot] = [*before, *batch.tokens[a:b].tolist()]
        chosen: list[Sampled | None] = [None] * len(batch.context)
        for step in steps:
            self.check(step, batch)
            self.store(step)
            if self.fails:
                raise RuntimeError
            for s, row in zip(step.sequences, step.rows, strict=True):
                chosen[s] = Sampled(int(self.hidden(step)[row])) if batch.sampling[s] is not None else None
        return chosen

    def check(self, step: SlotStep, batch: Batch) -> None:
        """Shapes agree, and rows are those of the sequences, in the order of their slots."""
        slots, width, rows = step.slots, step.width, len(step.tokens)
        assert 0 <= step.first <= step.first + slots <= self.max_seqs
        assert step.pad.shape == (slots, width)
        assert len(step.starts) == slots + 1
        assert (step.starts[0], step.starts[-1]) == (0, rows)
        assert (np.diff(step.starts) >= 0).all()
        assert width == np.diff(step.starts).max()
        assert self.packed or width == 1 or any(slots <= s and width <= n for s, n in self.shapes)
        assert (step.pad.reshape(-1)[step.unpad] == np.arange(rows)).all()
        assert ((step.pad >= 0) & (step.pad < rows)).all()
        assert (step.lengths >= 1).all()
        arrays = (step.tokens, step.positions, step.last, step.starts, step.past, step.lengths, step.pad)
        assert {x.dtype for x in (*arrays, step.unpad, step.context)} == {np.dtype(np.int32)}
        assert ((step.positions >= 0) & (step.positions < self.max_context)).all()
        for s, row, context in zip(step.sequences, step.rows, step.context, strict=True):
            slot, a, b = batch.tables[0][s, 0], *batch.starts[s : s + 2]
            end = int(step.last[row]) + 1
            assert end == step.starts[slot - step.first + 1]
            assert (step.tokens[end - (b - a) : end] == batch.tokens[a:b]).all()
            assert (step.positions[end - (b - a) : end] == batch.positions[a:b]).all()
            assert context == step.lengths[slot - step.first] == batch.context[s]

    def store(self, step: SlotStep) -> None:
        """As a padded update of a cache does: N entries a slot, those behind its tokens are whatever."""
        assert (step.past + step.width <= self.length).all(), "what is written for padding leaves the slot"
        for b in range(step.slots):
            for n in range(step.width):
                real = n < step.starts[b + 1] - step.starts[b] and step.first + b not in self.idle(step)
                entry = step.tokens[step.pad[b, n]] if real else GARBAGE
                self.cache[step.first + b, step.past[b] + n] = entry

    def idle(self, step: SlotStep) -> set[int]:
        """Slots in which a filled step has a row of nobody."""
        owned = np.searchsorted(step.starts, step.last[list(step.rows)], "right") - 1 + step.first
        return set(range(step.first, step.first + step.slots)) - set(owned.tolist())

    def hidden(self, step: SlotStep) -> list[int]:
        """For each row of logits, what follows from all keys of its slot; 0 for rows of nobody."""
        out, slots = [], np.flatnonzero(np.diff(step.starts)) + step.first
        for slot, used in zip(slots.tolist(), step.lengths[slots - step.first].tolist(), strict=True):
            if slot in self.idle(step):
                out.append(0)
                continue
            assert self.cache[slot, :used].tolist() == self.told[slot]
            out.append(sum(i * t for i, t in enumerate(self.told[slot], 7)) % self.vocab)
        return out


prompts = st.lists(st.integers(0, 999), min_size=1, max_size=20)
params = st.builds(SamplingParams, max_tokens=st.integers(1, 9), temperature=st.just(0.0))


class Serving(RuleBasedStateMachine):
    """Requests of any length, priority and time of arrival; the engine's asserts are the test."""

    @initialize(
        slots=st.integers(1, 6),
        budget=st.integers(1, 12),
        context=st.integers(4, 30),
        packed=st.booleans(),
        filled=st.booleans(),
    )
    def open(self, slots: int, budget: int, context: int, packed: bool, filled: bool) -> None:
        self.engine = SlotEngine(slots, budget, context, packed, filled)
        self.loop = Loop(self.engine)

    @rule(prompt=prompts, one=params, priority=st.integers(-1, 1))
    def arrive(self, prompt: list[int], one: SamplingParams, priority: int) -> None:
        if len(prompt) <= self.loop.pages.capacity:
            self.loop.add_request(prompt, one, priority=priority)

    @precondition(lambda self: self.loop.unfinished)
    @rule(steps=st.integers(1, 6))
    def work(self, steps: int) -> None:
        for _ in range(steps if self.loop.unfinished else 0):
            self.loop.step()

    @precondition(lambda self: self.loop.unfinished)
    @rule()
    def fail(self) -> None:
        self.engine.fails = True
        with pytest.raises(RuntimeError):
            self.loop.step()
        self.engine.fails = False


TestServing = Serving.TestCase


def batch(*sequences: tuple[int, int, int]) -> Batch:
    """Sequences given as (slot, tokens stored, new tokens); tokens count from 10 times the slot."""
    new = np.array([n for _, _, n in sequences], np.int32)
    starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
    tokens = np.concatenate([np.arange(10 * slot, 10 * slot + n) for slot, _, n in sequences])
    positions = np.concatenate([np.arange(past, past + n) for _, past, n in sequences])
    context = np.array([past + n for _, past, n in sequences], np.int32)
    table = np.array([[slot] for slot, _, _ in sequences], np.int32)
    none = (None,) * len(sequences)
    return Batch(tokens.astype(np.int32), positions.astype(np.int32), starts, context, (table,), none)


def test_a_batch_is_a_step_that_decodes_and_one_of_chunks():
    slots = Slots(8)
    slots.steps(batch((2, 0, 5), (4, 0, 3), (5, 0, 9)))
    decode, chunks = slots.steps(batch((5, 9, 1), (4, 3, 2), (2, 5, 1)))
    assert (decode.sequences, decode.first, decode.width) == ((2, 0), 2, 1)
    assert decode.tokens.tolist() == [20, 50]
    assert decode.past.tolist() == [5, 0, 3, 9]
    assert decode.lengths.tolist() == [6, 1, 3, 10]
    assert decode.starts.tolist() == [0, 1, 1, 1, 2]
    assert (chunks.sequences, chunks.first, chunks.width) == ((1,), 4, 2)
    assert chunks.positions.tolist() == [3, 4]


def test_chunks_that_lie_apart_are_steps_of_their_own():
    """Together they would be padded to all slots between them."""
    slots = Slots(64, shapes=shapes(64, 512))
    far = batch((50, 0, 30), (3, 0, 100), (40, 7, 1), (4, 0, 200))
    steps = slots.steps(far)
    assert [(s.sequences, s.first, s.slots, s.width) for s in steps] == [
        ((2,), 40, 1, 1),
        ((1, 3), 3, 2, 200),
        ((0,), 50, 1, 30),
    ]
    assert len(Slots(64).steps(far)) == 2
    assert [s.slots for s in Slots(64, shapes=shapes(64, 512)).steps(batch((3, 0, 9), (50, 0, 16)))] == [48]


def test_packed_queries_make_one_step():
    (step,) = Slots(8).steps(batch((5, 9, 1), (4, 3, 2), (2, 5, 1)), packed=True)
    assert step.tokens.tolist() == [20, 40, 41, 50]
    assert step.starts.tolist() == [0, 1, 1, 3, 4]
    assert step.last.tolist() == [0, 2, 3]
    assert step.pad.tolist() == [[0, 0], [0, 0], [1, 2], [3, 0]]
    assert step.unpad.tolist() == [0, 4, 5, 6]


def test_a_filled_step_has_a_row_for_every_slot_and_few_sizes():
    """Nobody's rows are token 0 at position 0; what they write lies behind the keys of their slot."""
    slots = Slots(20, filled=True)
    slots.steps(batch((1, 0, 4)))
    (step,) = slots.steps(batch((3, 7, 1), (0, 2, 1)))
    assert (step.sequences, step.rows, step.first, step.slots) == ((1, 0), (0, 3), 0, 8)
    assert step.tokens.tolist() == [0, 0, 0, 30, 0, 0, 0, 0]
    assert step.positions.tolist() == [2, 0, 0, 7, 0, 0, 0, 0]
    assert step.past.tolist() == [2, 4, 0, 7, 0, 0, 0, 0]
    assert slots.steps(batch((17, 7, 1)))[0].slots == 20
    assert [s.slots for s in slots.steps(batch((3, 8, 2)))] == [1]


def test_without_slots_every_sequence_stands_alone():
    step = whole(batch((5, 9, 1), (4, 3, 2)))
    assert (step.sequences, step.first, step.slots) == ((0, 1), 0, 2)
    assert step.tokens.tolist() == [50, 40, 41]
    assert step.past.tolist() == [9, 3]
    assert step.last.tolist() == [0, 2]
