"""Memory of slots: it follows the longest sequence, and what was stored in it stays."""

import random

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from irloom.backends.onnx.caches import LEAST, STEP, CacheInput, Caches

KEYS = CacheInput("a.k", "tensor(float)", (3, 0, 2), 1)
DENSE = CacheInput("b.k", "tensor(float16)", (1, 0, 2), 1)
FOURTH = CacheInput("c.k", "tensor(float)", (0, 4), 0, stride=4)
STATE = CacheInput("d", "tensor(float)", (5,), None)
ALL = (KEYS, DENSE, FOURTH, STATE)


def test_slots_begin_short_and_get_a_quarter_longer_than_they_must_be():
    caches, used = Caches(ALL, slots=3, most=3000), np.array([100, 0, 0], np.int32)
    assert caches.arrays["a.k"].shape == (3, 3, LEAST, 2)
    assert caches.arrays["c.k"].shape == (3, LEAST // 4, 4)
    caches.reach(100, used)
    assert caches.length == 2 * STEP
    caches.reach(1000, used)
    assert caches.length == 20 * STEP
    assert caches.arrays["a.k"].shape == (3, 3, 1280, 2)
    caches.reach(2999, used)
    assert caches.length == 3000, "no longer than they may get"


def test_slots_get_short_again_when_no_sequence_is_long():
    caches = Caches(ALL, slots=3, most=3000)
    caches.reach(2000, np.array([0, 2000, 0], np.int32))
    caches.reach(10, np.array([10, 2000, 0], np.int32))
    assert caches.length > 2000, "another slot's keys are there"
    caches.reach(11, np.array([11, 5, 0], np.int32))
    assert caches.length == LEAST


@pytest.mark.parametrize("seed", range(5))
def test_what_is_stored_stays(seed: int):
    """Sequences begin, grow and end at random, and each key is where it was."""
    draw, caches, used = random.Random(seed), Caches(ALL, 3, 900), np.zeros(3, np.int32)
    state: dict[int, float] = {}
    for step in range(60):
        slot, count = draw.randrange(3), draw.choice([1, 1, 30, 200])
        past = 0 if draw.random() < 0.2 or used[slot] + count > 850 else int(used[slot])
        used[slot] = past + count
        caches.reach(past + count, used)
        caches.arrays["a.k"][slot, :, past : past + count] = np.arange(past, past + count)[:, None]
        caches.arrays["c.k"][slot, past // 4 : (past + count) // 4] = slot
        if past == 0:
            caches.forget(slot)
        assert (caches.arrays["d"][slot] == (state.get(slot, 0) if past else 0)).all()
        caches.arrays["d"][slot] = state[slot] = step
        for s, n in enumerate(used):
            assert (caches.arrays["a.k"][s, :, :n] == np.arange(n)[:, None]).all()
            assert (caches.arrays["c.k"][s, : n // 4] == s).all()
        assert int(used.max()) <= caches.length <= 900
        assert caches.length <= max(LEAST, 2.5 * int(used.max()) + 2 * STEP)


def test_a_view_is_cut_where_one_slot_lies_without_gaps():
    caches = Caches(ALL, slots=3, most=3000)
    caches.reach(1000, np.zeros(3, np.int32))
    one = {v.name: v for v in caches.views(caches.part(2, 1, 70))}
    assert one["a.k"].dims == (1, 3, 1280, 2), "three heads, with gaps between their keys"
    assert one["b.k"].dims == (1, 1, 128, 2)
    assert one["c.k"].dims == (1, 32, 4)
    assert one["d"].dims == (1, 5)
    assert one["b.k"].address == caches.arrays["b.k"][2:].ctypes.data
    two = {v.name: v for v in caches.views(caches.part(1, 2, 70))}
    assert two["b.k"].dims == (2, 1, 1280, 2)


def test_a_part_is_another_once_memory_moved():
    caches = Caches(ALL, slots=1, most=3000)
    before = caches.part(0, 1, 60)
    assert caches.part(0, 1, 64) == before
    caches.reach(500, np.zeros(1, np.int32))
    assert caches.part(0, 1, 60) != before
