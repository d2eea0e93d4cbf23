"""Garbage waits until nobody holds the collector any more."""

from __future__ import annotations

import gc
from contextlib import suppress

from irloom.ir.garbage import uncollected


def test_it_waits_for_all_who_are_inside_whoever_leaves_first() -> None:
    """As threads do: each captures a graph, or one captures while another runs a pipeline."""
    one, two = uncollected(), uncollected()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert not gc.isenabled()
    two.__exit__(None, None, None)
    assert gc.isenabled()


def test_it_is_collected_again_behind_an_error() -> None:
    with suppress(ZeroDivisionError), uncollected():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_who_never_collects_still_does_not() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
