"""Lowering of what reads and writes rows by index."""

from __future__ import annotations

from irloom.ir.elem import ELEMS, Elem

from .context import Context, lowers
from .layers.index import Gather, GatherElements, ScatterElements
from .lower_matmul import matrix
from .lower_shape import expanded
from .network import Tensor

I32 = ELEMS["i32"]


def index(c: Context, name: str) -> Tensor:
    """An operand of indices, in an element that layers take."""
    x = c[name]
    return x if x.elem.name in ("i32", "i64") else c.cast(x, I32)


@lowers("embedding")
def embedding(c: Context) -> Tensor:
    elem, stored = c.result.plain, c.type("table").elem
    table = matrix(c, "table", stored if isinstance(stored, Elem) else elem)
    return c.cast(c.add(Gather(table, index(c, "ids"))), elem)


@lowers("last_rows")
def last_rows(c: Context) -> Tensor:
    return c.add(Gather(c["x"], c.step("last")))


@lowers("positions")
def positions(c: Context) -> Tensor:
    return c.step("positions")


@lowers("gather")
def gather(c: Context) -> Tensor:
    return c.add(GatherElements(c["x"], index(c, "index"), -1))


@lowers("scatter")
def scatter(c: Context) -> Tensor:
    x, at, src = c["x"], index(c, "index"), c.arg("src")
    given = c.number(src, x.elem, len(at.dims)) if isinstance(src, (int, float)) else c.cast(c["src"], x.elem)
    return c.add(ScatterElements(x, at, expanded(c, given, at.dims), -1))
