"""Networks that are drawn at random: what the rules allow runs in torch, and the library builds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irloom.backends.tensorrt.layers.elementwise import ElementWise, Unary
from irloom.backends.tensorrt.layers.fill import Linspace
from irloom.backends.tensorrt.layers.index import Gather
from irloom.backends.tensorrt.layers.reduce import CumulativeSum, Reduce, Softmax
from irloom.backends.tensorrt.layers.rules import with_dim
from irloom.backends.tensorrt.layers.shape import Concatenation, Shuffle, Slice
from irloom.backends.tensorrt.network import Network, Tensor
from irloom.ir.dims import sym
from irloom.ir.elem import ELEMS

from .real import refusal

T, B, N = map(sym, "TBN")
Draw = Callable[[int], int]
"""A number below the one that is given."""


def merge(net: Network, x: Tensor, draw: Draw) -> Tensor:
    if len(x.dims) < 2:
        return x
    i = draw(len(x.dims) - 1)
    return net.add(Shuffle(x, (*x.dims[:i], x.dims[i + 1] * x.dims[i], *x.dims[i + 2 :])))[0]


def split(net: Network, x: Tensor, draw: Draw) -> Tensor:
    even = [i for i, d in enumerate(x.dims) if isinstance(d, int) and d % 2 == 0 and len(x.dims) < 5]
    if not even:
        return x
    i = even[draw(len(even))]
    half = int(str(x.dims[i])) // 2
    return net.add(Shuffle(x, (*x.dims[:i], half, 2, *x.dims[i + 1 :])))[0]


def permute(net: Network, x: Tensor, draw: Draw) -> Tensor:
    left, order = list(range(len(x.dims))), list[int]()
    while left:
        order.append(left.pop(draw(len(left))))
    return net.add(Shuffle(x, first=tuple(order)))[0]


def reverse(net: Network, x: Tensor, draw: Draw) -> Tensor:
    i = draw(len(x.dims))
    ends = tuple(x.dims[i] - 1 if j == i else 0 for j in range(len(x.dims)))
    return net.add(Slice(x, ends, x.dims, tuple(-1 if j == i else 1 for j in range(len(x.dims)))))[0]


def pad(net: Network, x: Tensor, draw: Draw) -> Tensor:
    i, before = draw(len(x.dims)), draw(3)
    start = tuple(-before if j == i else 0 for j in range(len(x.dims)))
    return net.add(Slice(x, start, with_dim(x, i, x.dims[i] + before + draw(3)), mode="fill", fill=0.5))[0]


def cut(net: Network, x: Tensor, draw: Draw) -> Tensor:
    i = draw(len(x.dims))
    return net.add(Slice(x, (0,) * len(x.dims), with_dim(x, i, 1)))[0]


def repeat(net: Network, x: Tensor, draw: Draw) -> Tensor:
    one = cut(net, x, lambda n: n - 1)
    strides = (*(1 for _ in x.dims[1:]), 0)
    return net.add(Slice(one, (0,) * len(x.dims), (*x.dims[:-1], (3, N, B * 2)[draw(3)]), strides))[0]


def double(net: Network, x: Tensor, draw: Draw) -> Tensor:
    return net.add(Concatenation((x, x), draw(len(x.dims))))[0]


def pick(net: Network, x: Tensor, draw: Draw) -> Tensor:
    (at,) = net.add(Linspace(ELEMS["i32"], (N,), 0, (0,)))
    return net.add(Gather(x, at, draw(len(x.dims))))[0]


def centre(net: Network, x: Tensor, draw: Draw) -> Tensor:
    (mean,) = net.add(Reduce("avg", x, (draw(len(x.dims)),)))
    return net.add(ElementWise("sub", x, mean))[0]


def change(net: Network, x: Tensor, draw: Draw) -> Tensor:
    axis = draw(len(x.dims))
    layers = [Unary("abs", x), CumulativeSum(x, axis), *([Softmax(x, axis)] if len(x.dims) > 1 else [])]
    return net.add(layers[draw(len(layers))])[0]


MOVES = (merge, split, permute, reverse, pad, cut, repeat, double, pick, centre, change)


@pytest.mark.tensorrt
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_the_rules_allow_runs_and_is_built(data: st.DataObject) -> None:
    net = Network()
    dims = data.draw(st.sampled_from([(T, 8), (B, N, 4), (2, T)]))
    x = net.input("x", ELEMS["f32"], dims)
    for s in (T, B, N):
        net.input(f"of.{s}", ELEMS["i32"], (s,))
    for _ in range(data.draw(st.integers(1, 6))):
        move = data.draw(st.sampled_from(MOVES))
        x = move(net, x, lambda n: data.draw(st.integers(0, n - 1)))
    (x,) = net.add(Unary("neg", x))
    net.output("x", x)
    sizes = {"T": 3, "B": 2, "N": 4}
    values = {
        t.name: torch.ones([int(str(sizes.get(str(d), d))) for d in t.dims]).to(t.elem.torch)
        for t in net.inputs
    }
    net.run(values, {}.__getitem__)
    assert refusal(net) is None, str(net)
