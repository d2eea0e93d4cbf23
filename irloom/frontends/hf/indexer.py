"""The indexer of sparse attention: scores of all cached tokens, of which only the best positions are used.

A model reads the keys of all tokens back from its cache, scores them and keeps the best. Scores over a cache
exist in no packed batch. So what the probing cache gives back is no tensor: it stands for the keys of all
tokens, watches what is computed of it, and where the best are taken it is one op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from irloom.frontends.hf.sparse import sparse_index
from irloom.ir.errors import TraceError

MANY = 1 << 30
"""How many tokens a cache seems to hold: more than any indexer asks for."""


class Watched:
    """What a torch function gets in place of a tensor; one that has no method here cannot be followed."""

    @classmethod
    def __torch_function__(
        cls,
        fn: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        own = next(x for x in args if isinstance(x, Watched))
        rule = RULES.get(fn)
        if rule is None:
            own.unknown(getattr(fn, "__name__", str(fn)))
        return rule(own, *(x for x in args if x is not own), **(kwargs or {}))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self.unknown(name)

    def unknown(self, what: str) -> NoReturn:
        """Refuse what is computed."""
        raise TraceError(
            f"an indexer computes `{what}` of the keys in its cache",
            hint="followed are weighted sums over heads of relu(q . k), and the best of them",
        )


@dataclass
class IndexerKeys(Watched):
    """The keys of all tokens; ``keys`` [B, T, D] are those of this step."""

    keys: Tensor

    def same(self, *_: Any, **__: Any) -> IndexerKeys:
        """Another dtype or order of dims changes nothing here."""
        return self

    transpose = float = unsqueeze = squeeze = to = contiguous = same

    def times(self, q: Tensor) -> Products:
        """``q`` [B, T, H, D] times all keys."""
        return Products(q, self.keys)


@dataclass
class Products(Watched):
    """``relu(factor * q . k)`` for all keys; without ``positive``, before the relu."""

    q: Tensor
    keys: Tensor
    factor: float = 1.0
    positive: bool = False

    def scaled(self, factor: Any) -> Products:
        """Times a number; a positive one may move out of a relu."""
        if not isinstance(factor, int | float) or factor <= 0:
            self.unknown(f"a product with {factor}")
        return replace(self, factor=self.factor * factor)

    __mul__ = __rmul__ = scaled

    def relu(self) -> Products:
        """Negative products count nothing."""
        return replace(self, positive=True)

    def times(self, weight: Tensor) -> Scores:
        """The sum over heads, weighted by ``weight`` [B, T, 1, H]."""
        if not self.positive:
            self.unknown("a sum of products that may be negative")
        return Scores(self.q, self.keys, weight.squeeze(-2) * self.factor)


@dataclass
class Scores(Watched):
    """A score per key, the weighted sum of what each head finds."""

    q: Tensor
    keys: Tensor
    weight: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As many keys as anyone asks for."""
        return (*self.q.shape[:2], MANY)

    @property
    def dtype(self) -> torch.dtype:
        """That of the products."""
        return self.q.dtype

    def same(self, *_: Any, **__: Any) -> Scores:
        """Dims that come and go, and the causal mask, which is always on."""
        return self

    squeeze = masked_fill = __add__ = __radd__ = float = same

    def topk(self, k: int, dim: int = -1, **_: Any) -> SimpleNamespace:
        """The best, as one op; only their positions are known."""
        index = sparse_index(self.q, self.keys, self.weight, int(k))
        return SimpleNamespace(indices=index)


RULES: dict[Any, Callable[..., Any]] = {
    torch.matmul: lambda own, other: own.times(other),
    torch.relu: lambda own, **_: own.relu(),
    F.relu: lambda own, **_: own.relu(),
    torch.topk: lambda own, k, **options: own.topk(k, **options),
}
