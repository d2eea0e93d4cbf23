"""Which keys of its slot a token sees."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS

from .context import Context
from .layers.fill import DimValues, Linspace
from .network import Tensor
from .program import N

I32 = ELEMS["i32"]


@dataclass(frozen=True)
class Sight:
    """What the attention of ``c`` sees of a cache of ``length`` keys; each tensor is made once a network.

    The ``n``-th token of a slot stands at ``past + n``. Rows of padding stand behind the real ones, so they
    see keys, too: no row of a softmax is empty.
    """

    c: Context
    length: Dim

    @property
    def window(self) -> int | None:
        """Keys that a token sees, where it does not see all."""
        return self._real("window")

    @property
    def chunk(self) -> int | None:
        """Positions that see one another, where not all do."""
        return self._real("chunk")

    def _real(self, name: str) -> int | None:
        limit = self.c.attr(name)
        return None if limit is None or (isinstance(self.length, int) and limit >= self.length) else limit

    @property
    def limits(self) -> str:
        """The limits beside causality, in words."""
        given = {"window": self.window, "chunk": self.chunk}
        return ", ".join(f"{name} {n}" for name, n in given.items() if n is not None)

    def ends(self) -> Tensor:
        """``past + N`` i32[B]: keys of a slot, padding included, so that its diagonal is where it must be."""
        c = self.c

        def made() -> Tensor:
            return c.binary("sum", c.step("past"), c.cast(c.add(DimValues((N,))), I32))

        return c.once(("ends",), made)

    def at(self) -> Tensor:
        """The position i32[B, 1, N, 1] of each token of a slot."""
        c = self.c

        def made() -> Tensor:
            past = c.reshape(c.step("past"), (*c.step("past").dims, 1, 1, 1))
            return c.binary("sum", past, c.add(Linspace(I32, (1, 1, N, 1), 0, (0, 0, 1, 0))))

        return c.once(("at",), made)

    def keys(self) -> Tensor:
        """The positions i32[1, 1, 1, L] of keys."""
        ramp = Linspace(I32, (1, 1, 1, self.length), 0, (0, 0, 0, 1))
        return self.c.once(("keys", self.length), lambda: self.c.add(ramp))

    def mask(self) -> Tensor:
        """Whether a token sees a key: bool[B, 1, N, L]."""
        key = ("mask", self.length, self.window, self.chunk)
        return self.c.once(key, self._mask)

    def _mask(self) -> Tensor:
        c, at, keys = self.c, self.at(), self.keys()
        seen = c.binary("less", keys, c.binary("sum", at, 1))
        if self.window is not None:
            seen = c.binary("and", seen, c.binary("greater", keys, c.binary("sub", at, self.window)))
        if self.chunk is not None:
            first = c.binary("prod", c.binary("floor_div", at, self.chunk), self.chunk)
            seen = c.binary("and", seen, c.binary("greater", keys, c.binary("sub", first, 1)))
        return seen
