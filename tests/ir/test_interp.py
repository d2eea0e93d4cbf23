"""The reference interpreter: symbols, loops and slots, what an observer sees, where tensors live."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.errors import IRError
from irloom.ir.graph import Node, Param
from irloom.ir.interp import Interpreter, cache_types, empty_cache
from irloom.ir.parse import parse
from irloom.ir.seqs import PagedCache, Seqs

SIZES = """
def main(x: f32[T, 4], y: f32[2*T + 1, S], seqs: seqs[T, S], kv: paged[f32, 2][P, 1, 4], all: caches[2]):
    z = add(x, 1)
    return z
"""


def sized(**changes: Any) -> list[Any]:
    """Inputs of ``SIZES`` for 3 tokens of 2 sequences."""
    cache = PagedCache.empty(5, 2, 1, 4, torch.float32)
    given = {
        "x": torch.ones(3, 4),
        "y": torch.ones(7, 2),
        "seqs": Seqs.of([2, 1]),
        "kv": cache,
        "all": [0, 0],
    }
    return list({**given, **changes}.values())


def test_inputs_that_fit():
    (z,) = Interpreter(parse(SIZES))(*sized())
    assert z.equal(torch.full((3, 4), 2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(3, 5)}, "main: input `x` has size 5 where its type f32[T, 4] says 4"),
        ({"x": torch.ones(3)}, "main: input `x` has 1 dims, its type is f32[T, 4]"),
        ({"x": torch.ones(4, 4)}, "main: input `seqs` (seqs[T, S]) makes T 3, but another made it 4"),
        ({"y": torch.ones(6, 2)}, "main: input `y` has size 6 where its type f32[2*T + 1, S] says 2*T + 1"),
        ({"y": torch.ones(7, 3)}, "main: input `seqs` (seqs[T, S]) makes S 2, but another made it 3"),
        ({"seqs": Seqs.of([3])}, "main: input `seqs` (seqs[T, S]) makes S 1, but another made it 2"),
        (
            {"kv": PagedCache.empty(5, 2, 2, 4, torch.float32)},
            "main: input `kv` has size 2 where its type paged[f32, 2][P, 1, 4] says 1",
        ),
        ({"all": [0]}, "main: input `all` has size 1 where its type caches[2] says 2"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(IRError) as caught:
        Interpreter(parse(SIZES))(*sized(**changes))
    assert caught.value.message == message


def test_inputs_are_counted():
    with pytest.raises(IRError, match="main takes x, y, seqs, kv, all; 1 inputs are given"):
        Interpreter(parse(SIZES))(torch.ones(3, 4))


def test_attributes_take_the_sizes_of_the_inputs():
    m = parse("""
def main(x: f32[T, 4]):
    y = reshape(x, dims=(2*T, 2))
    a = arange(stop=T + 1, elem=i32)
    return y, a
""")
    y, a = Interpreter(m)(torch.ones(3, 4))
    assert y.shape == (6, 2)
    assert a.tolist() == [0, 1, 2, 3]


def test_a_symbol_that_no_input_gives_is_named():
    m = parse("def main(x: f32[4]):\n    y = full(dims=(N, 2), value=0.0, elem=f32)\n    return y\n")
    with pytest.raises(IRError, match="dim N: no value for N"):
        Interpreter(m)(torch.ones(4))


LAYERS = """
def layer(x: f32[T, 1, 4], seqs: seqs[T, S], kv: paged[f32, 2][P, 1, 4], w: f32[4] = weight("{i}")):
    y = mul(x, w)
    kv1 = kv_append(kv, y, y, seqs)
    return y, kv1

def main(x: f32[T, 1, 4], seqs: seqs[T, S], kv: caches[5]):
    a, kv[4] = layer[4](x, seqs, kv[4])
    for i in range(0, 4, 2):
        a, kv[i] = layer[i](a, seqs, kv[i])
        a, kv[i + 1] = layer[i + 1](a, seqs, kv[i + 1])
    b = add(a, 0.0)
    return b, kv
"""


def layer_weight(p: Param, layer: int | None) -> torch.Tensor:
    """Layer ``i`` multiplies by the ``i``-th prime."""
    assert layer is not None
    return torch.full((4,), float((2, 3, 5, 7, 11)[layer]))


def step(
    device: str = "cpu", observe: Callable[[Node, tuple[Any, ...], int | None], None] | None = None
) -> Any:
    m = parse(LAYERS)
    seqs = Seqs.of([2, 1], tables={"full": torch.tensor([[1], [0]])}).to(device)
    caches = [empty_cache(cache_types(m)[i], 2) for i in range(5)]
    caches = [PagedCache(c.k.to(device), c.v.to(device), c.pool) for c in caches if isinstance(c, PagedCache)]
    run = Interpreter(m, weights=layer_weight, observe=observe, device=device)
    return *run(torch.ones(3, 1, 4, device=device), seqs, caches), caches


def test_a_loop_runs_each_layer_on_what_it_carries():
    """Layer 4 comes first, then 0 to 3; each cache holds the product up to its own layer."""
    b, kv, before = step()
    assert b.eq(2 * 3 * 5 * 7 * 11).all()
    assert [c.k.max().item() for c in kv] == [22, 66, 330, 2310, 11]
    assert all(c.k[0].flatten(1)[:, 0].tolist() == [c.k.max(), 0] for c in kv), "one token in page 0"
    assert not any(c.k.any() for c in before), "the caches that were given stay"


def test_an_observer_sees_every_op_of_every_layer_in_order():
    seen: list[tuple[str, int | None, float]] = []

    def observe(n: Node, results: tuple[Any, ...], layer: int | None) -> None:
        if isinstance(results[0], torch.Tensor):
            seen.append((n.result.name, layer, results[0].max().item()))

    step(observe=observe)
    assert seen == [
        ("y", 4, 11),
        ("y", 0, 22),
        ("y", 1, 66),
        ("y", 2, 330),
        ("y", 3, 2310),
        ("b", None, 2310),
    ]


def test_a_loop_of_no_steps_passes_on_what_it_carries():
    m = parse("""
def f(x: f32[2]):
    y = neg(x)
    return y

def main(x: f32[2]):
    a = neg(x)
    for i in range(3, 3):
        a = f(a)
    return a
""")
    assert Interpreter(m)(torch.ones(2))[0].tolist() == [-1, -1]


def test_one_function_of_a_module_runs_alone():
    m = parse("""
def layer(x: f32[4], w: f32[4] = weight("{i}")):
    y = mul(x, w)
    return y

def main(x: f32[4]):
    y = layer[0](x)
    return y
""")
    (y,) = Interpreter(m, weights=layer_weight)(torch.ones(4), func="layer", layer=3)
    assert y.tolist() == [7] * 4


FROM_NOTHING = """
def main(x: f32[T, 4]):
    a = arange(stop=4, elem=f32)
    f = full(dims=(T, 1), value=2.0, elem=f32)
    y = mul(x, a)
    z = add(y, f)
    c = lt(x, 0.5)
    m = where(c, 1.0, 0.0)
    return z
"""


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_live_on_the_device(device: str):
    """The meta device stands for any that is not the default: a mix of the two is refused by torch."""
    where: set[str] = set()

    def observe(n: Node, results: tuple[torch.Tensor, ...], layer: int | None) -> None:
        where.update(r.device.type for r in results)

    Interpreter(parse(FROM_NOTHING), device=device, observe=observe)(torch.ones(3, 4, device=device))
    assert where == {device}


def test_weights_come_to_the_device_once():
    reads: list[tuple[str, int | None]] = []

    def weights(p: Param, layer: int | None) -> torch.Tensor:
        reads.append((p.name, layer))
        return torch.ones(4)

    m = parse('def main(x: bf16[4], w: bf16[4] = weight("w")):\n    y = mul(x, w)\n    return y\n')
    run = Interpreter(m, weights=weights, device="meta")
    for _ in range(2):
        (y,) = run(torch.ones(4, dtype=torch.bfloat16, device="meta"))
        assert y.device.type == "meta"
        assert y.dtype == torch.bfloat16
    assert reads == [("w", None)]


WEIGHTED = 'def main(x: f32[4], w: f32[4, 4] = weight("w")):\n    y = linear(x, w)\n    return y\n'


def test_weights_need_a_checkpoint():
    with pytest.raises(IRError, match="weight `w` is needed, but there is no checkpoint"):
        Interpreter(parse(WEIGHTED))(torch.ones(4))


def test_weights_have_the_dims_of_their_type():
    checkpoint = RandomCheckpoint(0, {"w": (4, 4)})
    Interpreter(parse(WEIGHTED), checkpoint)(torch.ones(4))
    wide = parse(WEIGHTED.replace("f32[4, 4]", "f32[5, 4]"))
    with pytest.raises(IRError, match=r"weight `w` is \[4, 4\] in .*, but its type is f32\[5, 4\]"):
        Interpreter(wide, checkpoint)(torch.ones(4))
