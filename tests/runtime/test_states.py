"""Pools of recurrent states: two slots a sequence, chunks cut at snapshots, prefixes that go on from one."""

from __future__ import annotations

import numpy as np
import pytest

from irloom.ir.plan import Pool
from irloom.runtime.core import SamplingRow
from irloom.runtime.loop import Loop
from irloom.runtime.pages import Pages, Prefix
from irloom.runtime.request import SamplingParams

from .engine import VOCAB, HashEngine, oracle
from .filling import TOKENS, fill, hit

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
rng = np.random.default_rng(3)
PROMPTS = [rng.integers(0, VOCAB, n).tolist() for n in (1, 7, 8, 9, 16, 33, 40)]


def state(slots: int, every: int = 8) -> Pool:
    return Pool("state", 2, every, 0, slots, cut=True)


def hybrid(pages: int = 300, slots: int = 300, every: int = 8, window: int | None = None) -> tuple[Pool, ...]:
    return state(slots, every), Pool("pages", window, 4, 0, pages), state(slots, every)


def make(pools: tuple[Pool, ...], budget: int = 64, seqs: int = 8, context: int = 128) -> Loop:
    return Loop(HashEngine(pools, budget, seqs, context))


def engine(loop: Loop) -> HashEngine:
    assert isinstance(loop.engine, HashEngine)
    return loop.engine


EXPECTED = [oracle(hybrid(), prompt, 20, SamplingRow(GREEDY, 0, 0)) for prompt in PROMPTS]


def test_two_slots_carry_a_sequence_of_any_length():
    """One holds the state, another the snapshot that the next chunk goes on from."""
    pages = Pages((state(2),), 1, 100)
    assert pages.capacity == 100
    table = fill(pages, 100)
    assert (table.first, table.last, pages.in_use) == ([12], [13], 1)
    assert Pages((state(1),), 1, 100).capacity == 8


def test_a_chunk_ends_at_a_snapshot():
    """With snapshots every 8 and every 6 tokens: at 6, 8, 12, 16, 18."""
    pages = Pages((state(9, 8), state(9, 6)), 1, 100)
    table, ends = pages.open(Prefix(TOKENS, pages.unit), 0), []
    while table.stored < 18:
        count = pages.uncut(table)
        pages.grow(table, count)
        pages.advance([table.slot], [count])
        ends.append(table.stored)
    assert ends == [6, 8, 12, 16, 18]


def test_a_hit_is_a_snapshot_and_nothing_before_it():
    """20 tokens leave snapshots at 8 and 16; the one at 16 is enough, the state after 20 is nobody's."""
    pages = Pages(hybrid(), 4, 100)
    pages.close(fill(pages, 20))
    assert [hit(pages, n) for n in (100, 20, 16, 15, 8, 7)] == [16, 16, 16, 8, 8, 0]
    table = pages.open(Prefix(TOKENS, pages.unit), 19)
    assert (table.stored, table.first, table.last) == (16, [1, 0, 1], [2, 4, 2])
    pages.check()


def test_a_snapshot_that_was_evicted_is_no_hit():
    """Two sequences take the blank slot and that of the older snapshot."""
    pages = Pages((state(3),), 4, 100)
    pages.close(fill(pages, 20))
    other, both = fill(pages, 5, tokens=TOKENS[60:]), fill(pages, 5, tokens=TOKENS[70:])
    assert [hit(pages, n) for n in (20, 15)] == [16, 0]
    for table in (other, both):
        pages.close(table)
    pages.check()


def test_a_sequence_asks_for_one_slot_and_one_to_spare():
    """However long it gets; a snapshot that it shares stays with the others."""
    pages = Pages((state(3),), 4, 100)
    table = pages.open(Prefix(TOKENS, 8), 99)
    pages.open(Prefix(TOKENS, 8), 0)
    assert pages.fits(table, 100)
    pages.open(Prefix(TOKENS, 8), 0)
    assert not pages.fits(table, 100)
    assert pages.fits(table, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"seqs": 1},
        {},
        {"budget": 11},
        {"budget": 3, "seqs": 3},
        {"pools": hybrid(16, 16)},
        {"pools": hybrid(15, 3), "budget": 16},
        {"pools": hybrid(15, 2), "budget": 16},
        {"pools": hybrid(every=1)},
        {"pools": hybrid(every=5)},
        {"pools": hybrid(every=64)},
    ],
    ids=[
        *("alone", "batched", "chunked", "tiny chunks", "preempted", "starved", "two slots"),
        *("every token", "apart from pages", "never"),
    ],
)
def test_text_does_not_depend_on_company(settings):
    loop = make(**{"pools": hybrid(), **settings})
    for _ in range(2):  # the second time from snapshots, where there are some
        assert [o.token_ids for o in loop.generate(PROMPTS, GREEDY)] == EXPECTED
        assert loop.pages.in_use == 0
        loop.check()


def test_a_preempted_request_resumes_from_a_snapshot():
    """The urgent one takes the last pages; what is left of the other begins with a snapshot at 32."""
    loop = make(hybrid(pages=16))
    loop.add_request(PROMPTS[5], GREEDY, id="plain", priority=1)
    for _ in range(8):
        loop.step()
    (plain,) = loop.scheduler.running
    loop.add_request(PROMPTS[2], GREEDY, id="urgent")
    done, resumed = dict[str, list[int]](), set[int]()
    while loop.unfinished:
        done |= {d.id: d.output.token_ids for d in loop.step() if d.output is not None}
        loop.check()
        if plain.preemptions and plain.table is not None:
            resumed.add(int(engine(loop).batches[-1].positions[0]))
    assert done == {"plain": EXPECTED[5], "urgent": EXPECTED[2]}
    assert min(resumed) == 32


def test_few_slots_really_preempt():
    """Two urgent sequences reach a snapshot in the same step: of four slots none is left for the other."""
    loop = make(hybrid(slots=4))
    loop.add_request(PROMPTS[6], GREEDY, id="plain", priority=1)
    loop.step()
    names = [loop.add_request(PROMPTS[4], GREEDY) for _ in range(2)]
    done = dict[str, list[int]]()
    while loop.unfinished:
        done |= {d.id: d.output.token_ids for d in loop.step() if d.output is not None}
        loop.check()
    assert done == {"plain": EXPECTED[6]} | dict.fromkeys(names, EXPECTED[4])
    assert loop.scheduler.preemptions > 0


def test_prefixes_go_on_from_snapshots():
    """The last snapshot before the last token of each prompt; decoding has left more of them."""
    loop = make(hybrid())
    loop.generate(PROMPTS, GREEDY)
    outputs = loop.generate(PROMPTS, GREEDY)
    assert [o.cached_tokens for o in outputs] == [(len(p) - 1) // 8 * 8 for p in PROMPTS]
    (output,) = loop.generate([PROMPTS[6] + EXPECTED[6][:10]], GREEDY)
    assert output.cached_tokens == 48
    assert output.token_ids[:10] == EXPECTED[6][10:]


def test_a_long_prompt_shares_its_steps():
    """What a cut leaves of the budget goes to others: 40 tokens go in chunks of 8."""
    loop = make(hybrid(), budget=20)
    for prompt in (PROMPTS[6], PROMPTS[5]):
        loop.add_request(prompt, GREEDY)
    for _ in range(3):
        loop.step()
    assert [np.diff(batch.starts).tolist() for batch in engine(loop).batches] == [[8, 8]] * 3
