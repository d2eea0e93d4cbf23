"""Networks become network definitions: names, symbols, weights, outputs."""

import pytest
import torch

from irloom.backends.tensorrt.emitter import bindings
from irloom.backends.tensorrt.layers.cache import KVCacheUpdate
from irloom.backends.tensorrt.layers.elementwise import Unary
from irloom.backends.tensorrt.layers.fill import DimValues, Linspace
from irloom.backends.tensorrt.layers.matmul import MatrixMultiply
from irloom.backends.tensorrt.layers.quantize import to_quantized
from irloom.backends.tensorrt.layers.shape import Shuffle
from irloom.backends.tensorrt.network import Network, NotExpressible
from irloom.backends.tensorrt.weights import packed
from irloom.ir.dims import sym
from irloom.ir.elem import ELEMS

from .real import Question, refusal

BF16, F32, I32 = ELEMS["bf16"], ELEMS["f32"], ELEMS["i32"]
T, B, N = map(sym, "TBN")


def test_four_bits_are_packed_two_a_byte_the_low_half_first():
    x = torch.tensor([[1, -8, 7]], dtype=torch.int8)
    assert packed(ELEMS["i4"], x).tolist() == [0x81, 0x07]
    y = to_quantized(torch.tensor([0.5, -6.0, 1.5, -0.0]), ELEMS["f4e2m1"])
    assert packed(ELEMS["f4e2m1"], y).tolist() == [0xF1, 0x83]


def test_wider_entries_stay_as_they_are():
    x = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
    assert torch.equal(packed(BF16, x), x) and packed(BF16, x).is_contiguous()


def cached() -> Network:
    net = Network()
    cache = net.input("kv.k", BF16, (B, 2, 32, 16))
    new, past = net.input("new", BF16, (B, 2, N, 16)), net.input("past", I32, (B,))
    (made,) = net.add(KVCacheUpdate(cache, new, past), "update")
    net.output("kv.k", made, alias="kv.k")
    return net


def test_a_renewed_cache_leaves_under_a_name_of_its_own():
    assert bindings(cached()) == {"kv.k": "kv.k.out"}


@pytest.mark.tensorrt
def test_the_definition_has_the_names_of_the_network():
    net = Network()
    x, w = net.input("x", BF16, (T, 8)), net.weight("model.w", BF16, (4, 8))
    (h,) = net.add(MatrixMultiply(x, w, transpose_b=True), "model.up")
    (a,) = net.add(Unary("abs", h), "model.act")
    net.output("h", h)
    net.output("a", a)
    net.output("again", a)
    question = Question()
    question.emitter.emit(net)
    made = question.definition
    assert [made.get_input(i).name for i in range(made.num_inputs)] == ["x"]
    assert [made.get_output(i).name for i in range(made.num_outputs)] == ["h", "a", "again"]
    assert [made.get_layer(i).name for i in range(3)] == ["model.w", "model.up", "model.act"]
    assert made.get_input(0).get_dimension_name(0) == "T"
    assert question.build(net, [{"T": (1, 2, 3)}]) is None


@pytest.mark.tensorrt
def test_the_result_of_an_update_is_an_alias_of_its_cache():
    net, question = cached(), Question()
    question.emitter.emit(net)
    outputs = [question.definition.get_output(i).name for i in range(question.definition.num_outputs)]
    assert outputs == ["kv.k.out"]


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    "dims",
    [(T,), (T, 2), (T * 2 - 1, 3), (T * B, B), (T * T + 4,), (N * 8, B * 2)],
    ids=str,
)
def test_dims_are_worked_out_from_the_shapes_of_inputs(dims):
    net = Network()
    for s in (T, B, N):
        net.input(f"of.{s}", I32, (3, s))
    (numbers,) = net.add(DimValues(dims))
    (ramp,) = net.add(Linspace(I32, dims, 0, (1,) * len(dims)))
    net.output("numbers", numbers)
    net.output("ramp", ramp)
    assert refusal(net) is None


@pytest.mark.tensorrt
def test_a_symbol_that_no_input_has_is_an_error():
    net = Network()
    x = net.input("x", F32, (T * 2,))
    (y,) = net.add(Shuffle(x, (2, T)))
    net.output("y", y)
    assert refusal(net) is None  # what is left over needs no number
    net.output("z", net.add(DimValues((T,)))[0])
    with pytest.raises(NotExpressible, match="no input of the network has a dim T"):
        Question().emitter.emit(net)
