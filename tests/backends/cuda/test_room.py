"""What does not fit on a GPU is said before it is tried: how much is needed, what is free, what helps."""

import pytest

from irloom.backends.cuda.room import Room
from irloom.ir.errors import RequestError

GIB = 1 << 30


def room(**bytes_of: int) -> Room:
    return Room(**{"free": 24 * GIB, "total": 24 * GIB, "weights": 16 * GIB, "step": GIB} | bytes_of)


def test_caches_get_what_is_left() -> None:
    left = room().for_caches()
    assert 5 * GIB < left < 7 * GIB
    assert room().for_caches(GIB) == GIB


@pytest.mark.parametrize(
    ("given", "asked", "hint"),
    [
        ({"weights": 30 * GIB}, None, "quantize"),
        ({"step": 10 * GIB}, None, "max_tokens"),
        ({}, 10 * GIB, "memory"),
        ({"free": 4 * GIB}, None, "else runs"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_helps(
    given: dict[str, int], asked: int | None, hint: str
) -> None:
    with pytest.raises(RequestError, match=r"the GPU has .* GB free of 25.8 GB, but weights take") as error:
        room(**given).for_caches(asked)
    assert hint in str(error.value)
