"""How sums over a dim of a row become kernel calls."""

from __future__ import annotations

from irloom.backends.cpu.lower import Lowering
from irloom.backends.cpu.program import lowers
from irloom.ir.dims import product
from irloom.ir.graph import Node, Value


@lowers("sum")
def sum_(f: Lowering, n: Node) -> bool:
    """Along any dim of a row."""
    return _sums(f, n, mean=False)


@lowers("mean")
def mean(f: Lowering, n: Node) -> bool:
    """The same, over how many there are."""
    return _sums(f, n, mean=True)


@lowers("weighted_sum")
def weighted_sum(f: Lowering, n: Node) -> bool:
    """What experts give, by the shares of their router."""
    x, weights = n.args
    if not isinstance(x, Value) or not f.f32(x, weights):
        return False
    _, count, inner = x.type.dims
    f.place(n.result)
    f.call("sums", x, n.result, count=count, inner=inner, weights=weights, scale=1.0, loc=n.loc)
    return True


def _sums(f: Lowering, n: Node, *, mean: bool) -> bool:
    x, dim = n.args[0], n.attrs["dim"]
    if not isinstance(x, Value) or not isinstance(dim, int) or not f.f32(x, n.result):
        return False
    at = dim % x.type.rank
    if at == 0:
        return False
    count, inner = x.type.dims[at], product(x.type.dims[at + 1 :])
    assert isinstance(count, int)
    f.place(n.result)
    scale = 1.0 / count if mean else 1.0
    f.call("sums", x, n.result, count=count, inner=inner, weights="None", scale=scale, loc=n.loc)
    return True
