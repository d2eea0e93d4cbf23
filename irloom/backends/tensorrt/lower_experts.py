"""Lowering of mixtures of experts.

TensorRT's own layer runs on Blackwell data center GPUs alone (SM 10.x and 11.x). Elsewhere the products are
dense, every expert on every token, weighed by what the token gives it, 0 for most: shapes then depend on no
data. Where a step has so few tokens that their own experts are less to read, these are gathered instead.
"""

from __future__ import annotations

from collections.abc import Callable

from irloom.ir.dims import Dim, product
from irloom.ir.elem import ELEMS

from .context import Context, lowers
from .layers.elementwise import Select
from .layers.fill import Linspace
from .layers.index import Gather
from .layers.matmul import MatrixMultiply
from .layers.reduce import Reduce
from .layers.shape import Slice
from .lower_activation import act
from .lower_matmul import matrix
from .lower_router import routed
from .moe_layer import fits, layer_of
from .network import Tensor

I32 = ELEMS["i32"]
GATHERED = 3
"""Times that a gathered weight is read or written for once that a dense one is: it becomes a copy."""


@lowers("moe")
def moe(c: Context) -> Tensor:
    x, index = c["x"], c.cast(c["index"], I32)
    if c.to.kernels.experts and fits(c, x):
        return layer_of(c, x, index)
    gate_up, down = matrix(c, "gate_up", x.elem), matrix(c, "down", x.elem)
    experts = gate_up.dims[0]
    if few(c, index, experts):
        return _of_chosen(c, x, index, gate_up, down)
    return _of_all(c, x, index, gate_up, down)


def few(c: Context, index: Tensor, experts: Dim) -> bool:
    """Whether the experts that a step's tokens choose are less to read, copies counted, than all of them."""
    rows, chosen = index.dims
    assert isinstance(chosen, int) and isinstance(experts, int)
    most = c.to.most(rows) * chosen
    gathered = most * GATHERED <= experts
    c.note(
        f"{'the chosen experts, gathered' if gathered else 'every expert, on every token'}: "
        f"up to {most} are chosen of {experts}"
    )
    return gathered


def _of_all(c: Context, x: Tensor, index: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """[E, T, ...]: every expert on every row; the sum over experts by what a row gives each."""
    experts = gate_up.dims[0]
    y = c.add(MatrixMultiply(c.lift(x, 3), gate_up, transpose_b=True))
    y = _gated(c, _biased(c, y, "gate_up_bias", lambda b: c.reshape(b, (experts, 1, b.dims[1]))), 2)
    y = c.add(MatrixMultiply(y, down, transpose_b=True))
    y = _biased(c, y, "down_bias", lambda b: c.reshape(b, (experts, 1, b.dims[1])))
    share = c.permute(_shares(c, index, c["weights"], experts), (2, 0, 1))
    elem = c.result.plain
    return c.add(Reduce("sum", c.binary("prod", c.cast(y, elem), c.cast(share, elem)), (0,), keep=False))


def _shares(c: Context, index: Tensor, weights: Tensor, experts: Dim) -> Tensor:
    """What a row gives each expert, [T, 1, E]: 0 where it has not chosen it."""
    one = _one_hot(c, index, experts)
    given = c.reshape(weights, (*weights.dims, 1))
    shares = c.add(Select(one, given, c.number(0.0, weights.elem, 3)))
    return c.add(Reduce("sum", shares, (1,)))


def _one_hot(c: Context, index: Tensor, experts: Dim) -> Tensor:
    """Whether a choice is this expert: bool[T, k, E]."""
    numbers = c.once(("experts", experts), lambda: c.add(Linspace(I32, (1, 1, experts), 0, (0, 0, 1))))
    return c.binary("equal", c.reshape(index, (*index.dims, 1)), numbers)


def _of_chosen(c: Context, x: Tensor, index: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """[T, k, ..., 1]: each row times copies of the weights it chooses."""
    at, share = _inside(c, index, c["weights"], gate_up.dims[0])
    rows, hidden = x.dims
    y = c.add(MatrixMultiply(c.add(Gather(gate_up, at)), c.reshape(x, (rows, 1, hidden, 1))))
    y = _gated(c, _biased(c, y, "gate_up_bias", lambda b: _column(c, b, at)), 2)
    y = c.add(MatrixMultiply(c.add(Gather(down, at)), y))
    y = _biased(c, y, "down_bias", lambda b: _column(c, b, at))
    elem = c.result.plain
    y = c.reshape(y, y.dims[:-1])
    share = c.reshape(share, (*share.dims, 1))
    return c.add(Reduce("sum", c.binary("prod", c.cast(y, elem), c.cast(share, elem)), (1,), keep=False))


def _biased(c: Context, y: Tensor, name: str, shaped: Callable[[Tensor], Tensor]) -> Tensor:
    """``y`` plus the bias of its experts, if there is one."""
    return c.binary("sum", y, shaped(c.cast(c[name], y.elem))) if c.has(name) else y


def _column(c: Context, bias: Tensor, at: Tensor) -> Tensor:
    """Of each choice, the bias [T, k, n, 1]."""
    mine = c.add(Gather(bias, at))
    return c.reshape(mine, (*mine.dims, 1))


def _gated(c: Context, y: Tensor, axis: int) -> Tensor:
    """``act(gate) * up``, the halves of ``axis``."""
    total = y.dims[axis]
    assert isinstance(total, int)
    size = (*y.dims[:axis], total // 2, *y.dims[axis + 1 :])
    starts = [tuple(at if i == axis else 0 for i in range(len(size))) for at in (0, total // 2)]
    gate, up = (c.add(Slice(y, start, size)) for start in starts)
    return c.binary("prod", act(c, gate, c.attr("act")), up)


def _inside(c: Context, index: Tensor, weights: Tensor, experts: Dim) -> tuple[Tensor, Tensor]:
    """Choices that are experts, and what the row gives them: 0 where the choice was none."""
    at = clipped(c, index, experts)
    share = Select(c.binary("equal", at, index), weights, c.number(0.0, weights.elem, 2))
    return at, c.add(share)


def clipped(c: Context, index: Tensor, experts: Dim) -> Tensor:
    """The nearest expert that there is."""
    assert isinstance(experts, int)
    return c.binary("min", c.binary("max", index, 0), experts - 1)


@lowers("expert_linear")
def expert_linear(c: Context) -> Tensor:
    x, index = c["x"], c.cast(c["index"], I32)
    weight = matrix(c, "weight", x.elem)
    at = clipped(c, index, weight.dims[0])
    if few(c, index, weight.dims[0]):
        y = _chosen_rows(c, x, at, weight)
    else:
        y = _picked_rows(c, x, index, at, weight)
    chosen = c.reshape(c.binary("equal", at, index), (*at.dims, 1))
    return c.add(Select(chosen, y, c.number(0.0, y.elem, 3)))


def _chosen_rows(c: Context, x: Tensor, at: Tensor, weight: Tensor) -> Tensor:
    """[T, k, n] by copies of the weights that are chosen."""
    rows, hidden = x.dims[0], x.dims[-1]
    each = c.reshape(x, (rows, x.dims[1] if len(x.dims) == 3 else 1, hidden, 1))
    y = c.add(MatrixMultiply(c.add(Gather(weight, at)), each))
    y = _biased(c, y, "bias", lambda b: _column(c, b, at))
    return c.reshape(y, y.dims[:-1])


def _picked_rows(c: Context, x: Tensor, index: Tensor, at: Tensor, weight: Tensor) -> Tensor:
    """[T, k, n]: every expert on every row, of which each choice takes its own."""
    experts, features = weight.dims[:2]
    rows, choices = c.reshape(x, (1, product(x.dims[:-1]), x.dims[-1])), at
    if len(x.dims) == 3 and routed(c):
        rows = spread(c, x, index, experts)
    elif len(x.dims) == 3:
        choices = c.reshape(at, (rows.dims[1], 1))
    y = c.add(MatrixMultiply(rows, weight, transpose_b=True))
    y = _biased(c, y, "bias", lambda b: c.reshape(b, (experts, 1, features)))
    picked = c.add(Gather(c.permute(y, (1, 0, 2)), choices, 1, batch=1))
    return c.reshape(picked, (*at.dims, features))


def spread(c: Context, x: Tensor, index: Tensor, experts: Dim) -> Tensor:
    """The rows [T, k, h] of distinct choices, each where its expert is: [E, T, h], 0 where none is.

    So there are as many products as for a row per token, not ``k`` times as many.
    """
    chosen = c.cast(_one_hot(c, index, experts), x.elem)
    return c.permute(c.add(MatrixMultiply(chosen, x, transpose_a=True)), (1, 0, 2))


@lowers("weighted_sum")
def weighted_sum(c: Context) -> Tensor:
    elem = c.result.plain
    weights = c.cast(c["weights"], elem)
    weighed = c.binary("prod", c.cast(c["x"], elem), c.reshape(weights, (*weights.dims, 1)))
    return c.add(Reduce("sum", weighed, (1,), keep=False))
