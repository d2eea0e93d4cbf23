"""Pieces that a kernel hashes have the digests that hashlib finds."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from irloom.backends.cuda.kernels.sha256 import ALIGN, BLOCK, LANES, Sha256

from .cross import compiled, spilled
from .device import DEVICE

MEMORY = torch.randint(0, 256, (6400,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def want(starts: list[int], sizes: list[int]) -> list[bytes]:
    data = MEMORY.numpy().tobytes()
    return [hashlib.sha256(data[at : at + n]).digest() for at, n in zip(starts, sizes, strict=True)]


def test_digests_are_those_of_hashlib() -> None:
    """Of more pieces than a program has, in any order, of several sizes, also where they share bytes."""
    draw = random.Random(1)
    sizes = [draw.choice([0, 1, 2, 3]) * BLOCK for _ in range(LANES + 2)]
    starts = [draw.randrange((len(MEMORY) - n) // ALIGN + 1) * ALIGN for n in sizes]
    assert Sha256(MEMORY.to(DEVICE), starts, sizes)() == want(starts, sizes)


def test_memory_is_hashed_as_it_is_when_that_is_asked_for() -> None:
    memory = torch.zeros_like(MEMORY).to(DEVICE)
    sha256 = Sha256(memory, [16], [BLOCK])
    memory.copy_(MEMORY)
    assert sha256() == want([16], [BLOCK])


@pytest.mark.parametrize(("start", "size"), [(8, 64), (16, 32), (6400 - 48, 64)])
def test_what_the_kernel_would_read_wrong_is_not_given_to_it(start: int, size: int) -> None:
    with pytest.raises(AssertionError):
        Sha256(MEMORY.to(DEVICE), [start], [size])


def test_words_stay_in_registers() -> None:
    """A block is four loads, and all rounds and the two blocks under way fit."""
    made = compiled(
        "irloom.backends.cuda.kernels.sha256",
        "sha256_pieces",
        {"digests": "*i32", "memory": "*i32", "starts": "*i64", "blocks": "*i32", "count": "i32"},
        {"LANES": LANES},
        num_warps=LANES // 32,
    )
    assert made["ptx"].count("ld.global.nc.v4.b32") == 12
    assert spilled(made["ptx"]) == 0
