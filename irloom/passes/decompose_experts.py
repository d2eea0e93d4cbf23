"""``decompose`` for experts: products over all of them, or with the weights that each token chose.

A network has static shapes, so rows cannot be sorted by the expert that they go to. Dense, every expert is
applied to every token: one plain product makes what goes into all experts, the choice is a factor that is 0
where an expert was not chosen, and one plain product sums over features and experts at once. Gathered, the
weights of a token's experts are rows of a table.
"""

from __future__ import annotations

from irloom.ir.dims import product
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.graph import Value
from irloom.ir.ops import (
    add,
    arange,
    embedding,
    eq,
    expand,
    expert_linear,
    ge,
    linear,
    logical_and,
    lt,
    matmul,
    maximum,
    minimum,
    moe,
    mul,
    ne,
    permute,
    reshape,
    route,
    split,
    sum_,
    topk,
    weighted_sum,
    where,
)

from .core import NoMatch
from .decompose_activation import activate
from .rewrite import Rewrite, Site
from .wide import to_elem

I32 = ELEMS["i32"]


class UnfuseMoe(Rewrite):
    """The products of experts, their gate, and the sum, one after the other."""

    def match(
        self, x: Value, index: Value, weights: Value, gate_up: Value, down: Value,
        gate_up_bias: Value | None, down_bias: Value | None, *, act: str,
    ) -> Value:  # fmt: skip
        return moe(x, index, weights, gate_up, down, gate_up_bias, down_bias, act=act)

    def replace(
        self, x: Value, index: Value, weights: Value, gate_up: Value, down: Value,
        gate_up_bias: Value | None, down_bias: Value | None, act: str,
    ) -> Value:  # fmt: skip
        gated = _gated(expert_linear(x, index, gate_up, gate_up_bias), act)
        return weighted_sum(expert_linear(gated, index, down, down_bias), weights)


class DenseMoe(Rewrite):
    """Every expert on every token, in two products."""

    def match(
        self, x: Value, index: Value, weights: Value, gate_up: Value, down: Value,
        gate_up_bias: Value | None, down_bias: Value | None, *, act: str,
    ) -> Value:  # fmt: skip
        return moe(x, index, weights, gate_up, down, gate_up_bias, down_bias, act=act)

    def where(self, gate_up: Value, down: Value) -> None:
        _plain(gate_up, down)

    def replace(
        self, x: Value, index: Value, weights: Value, gate_up: Value, down: Value,
        gate_up_bias: Value | None, down_bias: Value | None, act: str, site: Site,
    ) -> Value:  # fmt: skip
        tokens, elem = x.type.dims[0], x.type.plain
        experts, rows, _ = _sizes(gate_up)
        _, n, inner = _sizes(down)
        share = _shares(index, weights, experts)
        h = linear(x, _stacked(site, gate_up), _stacked(site, gate_up_bias))
        gated = _gated(reshape(h, dims=(tokens, experts, rows)), act)
        each = reshape(share, dims=(tokens, experts, 1))
        chosen = to_elem(where(ne(each, 0.0), mul(gated, each), 0.0), elem)
        by_row = permute(permute(down, dims=(1, 2, 0)), dims=(0, 2, 1))
        joined = _read(site, reshape(by_row, dims=(n, experts * inner)), down)
        y = linear(reshape(chosen, dims=(tokens, experts * inner)), joined)
        if down_bias is not None:
            shift = _read(site, permute(down_bias, dims=(1, 0)), down_bias)
            y = add(y, linear(to_elem(share, elem), shift))
        return to_elem(y, site.root.result.type.plain)


class DenseExperts(Rewrite):
    """Every expert on every row; of what they give, the rows of the experts that were chosen."""

    def match(self, x: Value, index: Value, weight: Value, bias: Value | None) -> Value:
        return expert_linear(x, index, weight, bias)

    def where(self, weight: Value) -> None:
        _plain(weight)

    def replace(self, x: Value, index: Value, weight: Value, bias: Value | None, site: Site) -> Value:
        experts, n, _ = _sizes(weight)
        every = linear(x, _stacked(site, weight), _stacked(site, bias))
        rows = x.type.dims[:-1]
        first = mul(reshape(arange(stop=product(rows), elem=I32), dims=(*rows, 1)[:2]), experts)
        table = reshape(every, dims=(product(rows) * experts, n))
        inside = _inside(site, index, experts)
        at = add(first, index if inside is None else _clamped(index, experts))
        return _only(inside, embedding(at, table))


class GatheredExperts(Rewrite):
    """Each row with the weights of its expert, read from a table of them."""

    def match(self, x: Value, index: Value, weight: Value, bias: Value | None) -> Value:
        return expert_linear(x, index, weight, bias)

    def where(self, weight: Value) -> None:
        _plain(weight)

    def replace(self, x: Value, index: Value, weight: Value, bias: Value | None, site: Site) -> Value:
        experts, n, k = _sizes(weight)
        tokens, choices = index.type.dims
        inside = _inside(site, index, experts)
        at = index if inside is None else _clamped(index, experts)
        table = _read(site, reshape(weight, dims=(experts, n * k)), weight)
        own = reshape(embedding(at, table, elem=x.type.plain), dims=(tokens, choices, n, k))
        column = reshape(x, dims=(*x.type.dims[:-1], *([1] if x.type.rank == 2 else []), k, 1))
        column = column if x.type.rank == 3 else expand(column, dims=(tokens, choices, k, 1))
        y = reshape(matmul(own, column), dims=(tokens, choices, n))
        y = y if bias is None else add(y, embedding(at, bias, elem=x.type.plain))
        return _only(inside, y)


def _gated(h: Value, act: str) -> Value:
    """``act(gate) * up`` of the halves of the last dim."""
    half = _last(h) // 2
    gate, up = split(h, dim=-1, sizes=(half, half))
    return mul(activate(act, gate), up)


def _shares(index: Value, weights: Value, experts: int) -> Value:
    """What each expert counts for each token [t, e]: its weight where it was chosen, else 0."""
    tokens, choices = index.type.dims
    numbers = reshape(arange(stop=experts, elem=I32), dims=(1, 1, experts))
    chosen = eq(reshape(to_elem(index, I32), dims=(tokens, choices, 1)), numbers)
    return sum_(where(chosen, reshape(weights, dims=(tokens, choices, 1)), 0.0), dim=1, keep=False)


def _stacked(site: Site, w: Value | None) -> Value | None:
    """The rows of all experts under each other; of a bias, its entries."""
    if w is None:
        return None
    experts, rows, *rest = _sizes(w)
    return _read(site, reshape(w, dims=(experts * rows, *rest)), w)


def _read(site: Site, moved: Value, of: Value) -> Value:
    """What was made of a weight alone as a weight of its own; of anything else as it is computed."""
    try:
        return site.fold(moved, of.name)
    except NoMatch:
        return moved


def _inside(site: Site, index: Value, experts: int) -> Value | None:
    """Where an index chooses an expert; None where all do, since they are the largest of as many scores.

    Of more scores than experts the last ones choose none (LongCat's experts that do nothing).
    """
    maker = site.producer(index)
    if maker is not None and maker.op in (topk, route):
        scores = maker.args[0]
        if isinstance(scores, Value) and scores.type.dims[-1] == experts:
            return None
    return logical_and(ge(index, 0), lt(index, experts))


def _clamped(index: Value, experts: int) -> Value:
    return minimum(maximum(index, 0), experts - 1)


def _only(inside: Value | None, y: Value) -> Value:
    """Rows [t, k, n] that an expert made; the others are zero."""
    if inside is None:
        return y
    return where(reshape(inside, dims=(*inside.type.dims, 1)), y, 0.0)


def _plain(*weights: Value) -> None:
    """``NoMatch`` for a quantized weight: its groups lie along the dims that it has."""
    for w in weights:
        if isinstance(w.type.elem, Quant):
            raise NoMatch(f"{w.name} is quantized, and would be cut in other dims")


def _sizes(v: Value) -> tuple[int, ...]:
    return tuple(int(str(d)) for d in v.type.dims)


def _last(v: Value) -> int:
    return int(str(v.type.dims[-1]))


DENSE_RULES = (DenseMoe(), DenseExperts())
GATHERED_RULES = (UnfuseMoe(), GatheredExperts())
