"""Dims: integers and polynomials over named symbols, such as ``2*T + 1``.

A symbol stands for a positive integer that is known when a step runs: ``T`` tokens in flight, ``S``
sequences, ``P`` pages. Equal polynomials are equal objects, so shape checks are comparisons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .errors import IRError

Monomial = tuple[str, ...]


@dataclass(frozen=True)
class Sym:
    """A polynomial with integer coefficients that is not a plain integer.

    >>> T = sym("T")
    >>> T * 2 + 1, T * 4 // 2 == T + T, (T + 1) - T
    (2*T + 1, True, 1)
    """

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        out = Counter(dict(self.terms))
        for k, v in _terms(other).items():
            out[k] += v
        return _make(out)

    def __mul__(self, other: Dim) -> Dim:
        return _times(self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __floordiv__(self, other: Dim) -> Dim:
        """Exact division by one monomial; anything else has no answer that is a dim."""
        return divide(self, other)

    def __str__(self) -> str:
        def one(k: Monomial, c: int) -> str:
            return "*".join(([str(c)] if c != 1 or not k else []) + list(k))

        return " + ".join(one(k, c) for k, c in reversed(self.terms))

    __repr__ = __str__


Dim = int | Sym


@lru_cache(maxsize=4096)  # a model has few dims, and every pass asks for them again
def _times(a: Sym, b: Dim) -> Dim:
    out: Counter[Monomial] = Counter()
    for k, x in a.terms:
        for other, y in _terms(b).items():
            out[tuple(sorted(k + other))] += x * y
    return _make(out)


def _terms(x: Dim) -> dict[Monomial, int]:
    return dict(x.terms) if isinstance(x, Sym) else {(): x} if x else {}


def _make(terms: Mapping[Monomial, int]) -> Dim:
    kept = tuple(sorted((k, v) for k, v in terms.items() if v))
    if all(k == () for k, _ in kept):
        return sum(v for _, v in kept)
    return Sym(kept)


def sym(name: str) -> Sym:
    """The symbol ``name`` as a dim."""
    return Sym((((name,), 1),))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of ``dims``; 1 for none.

    >>> product([2, sym("T"), 3])
    6*T
    """
    out: Dim = 1
    for d in dims:
        out = d * out
    return out


@lru_cache(maxsize=4096)
def divide(a: Dim, b: Dim) -> Dim:
    """``a / b`` where it is exact, else ``IRError``."""
    if isinstance(a, int) and isinstance(b, int) and b and not a % b:
        return a // b
    divisor = _terms(b)
    if len(divisor) != 1:
        raise IRError(f"{b} does not divide {a}")
    ((key, coefficient),) = divisor.items()
    out: dict[Monomial, int] = {}
    for k, c in _terms(a).items():
        rest = Counter(k)
        rest.subtract(Counter(key))
        if c % coefficient or min(rest.values(), default=0) < 0:
            raise IRError(f"{b} does not divide {a}")
        out[tuple(sorted(rest.elements()))] = c // coefficient
    return _make(out)


def covers(a: Dim, b: Dim) -> bool:
    """Whether ``a >= b`` whatever the symbols are, each at least 1; False also where that is hard to see.

    >>> T = sym("T")
    >>> covers(T * 8, T * 4 + 4), covers(T * 8, T * 4 + 5), covers(T * 8, sym("S"))
    (True, False, False)
    """
    rest = _terms(a - b)
    return sum(rest.values()) >= 0 and all(c >= 0 for k, c in rest.items() if k)


def symbols(dim: Dim) -> frozenset[str]:
    """The names a dim depends on.

    >>> sorted(symbols(sym("T") * sym("S") + 1))
    ['S', 'T']
    """
    return frozenset(name for k, _ in dim.terms for name in k) if isinstance(dim, Sym) else frozenset()


def without(dim: Dim, name: str) -> Dim:
    """What a dim is where a symbol is 0.

    >>> without(sym("P") + sym("T") * 2, "P")
    2*T
    """
    return _make({k: c for k, c in _terms(dim).items() if name not in k})


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """The integer a dim is when each symbol has the value that ``env`` gives.

    >>> evaluate(sym("T") * 2 + 1, {"T": 5})
    11
    """
    if not isinstance(dim, Sym):
        return dim
    try:
        return sum(c * math.prod(env[name] for name in k) for k, c in dim.terms)
    except KeyError as missing:
        raise IRError(f"dim {dim}: no value for {missing.args[0]}") from None
