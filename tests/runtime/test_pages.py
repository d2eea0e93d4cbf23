"""Pages and prefixes, one rule at a time; random traffic is in test_scheduler_properties."""

from __future__ import annotations

import pytest

from irloom.ir.plan import Pool
from irloom.runtime.pages import Pages, Prefix

from .filling import TOKENS, fill, hit


def open_pages(*pools: tuple[int | None, int, int], slots: int = 4) -> Pages:
    """Pools given as (window, page, pages)."""
    named = tuple(Pool(f"pool {i}", window, page, 0, n) for i, (window, page, n) in enumerate(pools))
    return Pages(named, slots, 100)


def test_a_sequence_takes_pages_as_it_grows():
    pages = open_pages((None, 4, 10))
    table = fill(pages, 9)
    assert (pages.tables[0][table.slot] >= 0).sum() == 3
    pages.close(table)
    pages.check()
    assert (pages.in_use, (pages.tables[0] >= 0).any()) == (0, False)


def test_whole_pages_are_shared_and_the_last_token_never_is():
    """8 tokens are two whole pages, but one token must be left to compute."""
    pages = open_pages((None, 4, 10))
    first, second = fill(pages, 8), fill(pages, 8)
    assert pages.tables[0][first.slot, 0] == pages.tables[0][second.slot, 0]
    assert pages.tables[0][first.slot, 1] != pages.tables[0][second.slot, 1]
    assert hit(pages, 9) == 8
    assert pages.in_use == 3


def test_one_other_token_changes_all_pages_behind_it():
    pages = open_pages((None, 4, 10))
    fill(pages, 16)
    other = TOKENS.copy()
    other[5] = 99
    assert hit(pages, 16, other) == 4
    assert pages.hit(Prefix(TOKENS, 4, "salt"), 16) == 0


def test_a_window_gives_pages_back_while_it_moves():
    """With a window of 6, the token at position 21 reads 16 to 21: pages 4 and 5."""
    pages = open_pages((6, 4, 10))
    table = fill(pages, 21, chunk=1)
    row = pages.tables[0][table.slot]
    assert [i for i in range(25) if row[i] >= 0] == [4, 5]
    assert pages.in_use == 2


def test_a_hit_needs_only_the_window_before_it():
    """Page 0 behind the window is lost; the hit at 16 does not need it, the one at 4 would."""
    pages = open_pages((6, 4, 10))
    pages.close(fill(pages, 16))
    _forget(pages, 0, pages.pools[0].published[_key(pages, 0)])
    assert hit(pages, 16) == 16
    assert hit(pages, 7) == 0
    table = pages.open(Prefix(TOKENS, 4), 16)
    assert (table.stored, table.first, table.last) == (16, [2], [4])
    pages.check()


def test_a_hit_must_hold_in_every_pool():
    """The window pool has lost page 3 (tokens 12 to 15): the longest hit of both is 12 tokens."""
    pages = open_pages((None, 4, 10), (6, 4, 10))
    pages.close(fill(pages, 20))
    _forget(pages, 1, pages.pools[1].published[_key(pages, 3)])
    assert hit(pages, 20) == 12


def test_pools_with_other_page_sizes_meet_at_common_ends():
    pages = open_pages((None, 4, 10), (None, 6, 10))
    fill(pages, 30)
    assert (pages.unit, pages.granule) == (2, 12)
    assert [hit(pages, n) for n in (30, 24, 23, 12, 11)] == [24, 24, 12, 12, 0]


def test_the_beginning_of_a_sequence_is_evicted_last():
    """Four idle pages, three taken by another sequence: the first page is still there."""
    pages = open_pages((None, 4, 4))
    pages.close(fill(pages, 16))
    other = fill(pages, 12, tokens=TOKENS[::-1].copy())
    assert hit(pages, 16) == 4
    pages.close(other)
    pages.check()


def test_what_was_hit_last_is_evicted_last():
    pages = open_pages((None, 4, 2))
    ours, theirs = TOKENS[:8], TOKENS[50:58]
    pages.close(fill(pages, 4, tokens=ours))
    pages.close(fill(pages, 4, tokens=theirs))
    pages.close(pages.open(Prefix(ours, 4), 4))
    pages.close(fill(pages, 4, tokens=TOKENS[80:88]))
    assert (hit(pages, 4, ours), hit(pages, 4, theirs)) == (4, 0)


def test_fits_counts_a_window_once():
    """40 tokens need 10 pages without a window, 3 with one of 6; one more may be spared of 11."""
    for pool, others, fits in (((None, 4, 11), 1, True), ((None, 4, 11), 2, False), ((6, 4, 4), 1, True)):
        pages = open_pages(pool)
        for _ in range(others):
            pages.open(Prefix(TOKENS, 4), 0)
        assert pages.fits(pages.open(Prefix(TOKENS, 4), 39), 40) == fits


def test_a_sequence_that_holds_its_last_page_wants_no_spare_one():
    """A page as long as the longest sequence is a slot: the second sequence may take the last of two."""
    for page, fits in ((100, True), (99, False)):
        pages = open_pages((None, page, 2))
        fill(pages, 1)
        assert pages.fits(pages.open(Prefix(TOKENS[50:], page), 0), 1) == fits


def test_the_first_free_page_is_taken():
    """However they come back: what is in use lies close together."""
    pages = open_pages((None, 100, 4))
    tables = [fill(pages, 1, tokens=TOKENS[i:]) for i in range(4)]
    for i in (1, 3, 0):
        pages.close(tables[i])
    assert [int(pages.tables[0][fill(pages, 1).slot, 0]) for _ in range(3)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("pools", "capacity"),
    [
        ([(None, 4, 10)], 40),
        ([(None, 4, 30)], 100),
        ([(6, 4, 3)], 100),  # 6 tokens reach into 3 pages at most
        ([(6, 4, 2)], 8),
        ([(1, 4, 1)], 100),
        ([(None, 4, 20), (6, 4, 3)], 80),
    ],
)
def test_capacity(pools, capacity):
    assert open_pages(*pools).capacity == capacity


def test_check_finds_what_is_wrong():
    """Each invariant is really looked at."""
    for spoil, message in (
        (lambda p, t: p.pools[0].refs.__setitem__(int(p.tables[0][t.slot, 0]), 2), "references: 2"),
        (lambda p, t: p.tables[0].__setitem__((t.slot, 1), -1), "tables hold page"),
        (lambda p, t: p.pools[0].blank.append(p.pools[0].blank[0]), "blank twice"),
        (lambda p, t: p.pools[0].blank.pop(), "is in 0 of blank, idle, in use"),
        (lambda p, t: p.pools[0].published.popitem(), "lost its key"),
        (lambda p, t: p.slots.pop(), "a slot is lost"),
        (lambda p, t: p.stored.__setitem__(t.slot, 13), "stored without pages"),
        (lambda p, t: p.stored.__setitem__(t.slot, 3), "is published and will be written"),
    ):
        pages = open_pages((None, 4, 10))
        spoil(pages, fill(pages, 10))
        with pytest.raises(AssertionError, match=message):
            pages.check()


def _key(pages: Pages, index: int) -> bytes:
    prefix = Prefix(TOKENS, pages.unit)
    prefix.reach(40)
    return prefix.key(index, 4)


def _forget(pages: Pages, i: int, page: int) -> None:
    """As if the page had been evicted."""
    pool = pages.pools[i]
    key = pool.keys[page]
    assert key is not None
    del pool.idle[page]
    del pool.published[key]
    pool.keys[page] = None
    pool.blank.append(page)
    pages.check()
