"""Names that nothing else has."""

from __future__ import annotations

from itertools import count


def take_name(base: str, taken: set[str], mark: str = "_", start: int = 1) -> str:
    """``base``, or the first of ``base_1``, ``base_2``, ... that is not ``taken``; taken from now on."""
    name, numbers = base, count(start)
    while name in taken:
        name = f"{base}{mark}{next(numbers)}"
    taken.add(name)
    return name
