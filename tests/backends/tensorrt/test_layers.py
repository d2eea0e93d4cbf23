"""What layers compute in torch, where it is not what the torch function of that name does."""

import pytest
import torch

from irloom.backends.tensorrt.layers.attention import Attention
from irloom.backends.tensorrt.layers.cache import KVCacheUpdate
from irloom.backends.tensorrt.layers.collective import DistCollective
from irloom.backends.tensorrt.layers.elementwise import ACTIVATIONS, Activation, ElementWise, Unary
from irloom.backends.tensorrt.layers.fill import Constant, DimValues, Linspace
from irloom.backends.tensorrt.layers.index import Gather, GatherNd, OneHot, ScatterNd
from irloom.backends.tensorrt.layers.moe import MoE
from irloom.backends.tensorrt.layers.normalization import Normalization
from irloom.backends.tensorrt.layers.quantize import Dequantize, DynamicQuantize, Quantize, to_quantized
from irloom.backends.tensorrt.layers.reduce import CumulativeSum, Reduce, TopK
from irloom.backends.tensorrt.layers.rotary import RotaryEmbedding
from irloom.backends.tensorrt.layers.shape import Slice
from irloom.backends.tensorrt.network import Layer, Network, NotExpressible
from irloom.ir.dims import sym
from irloom.ir.elem import ELEMS, elem_of

F32, I32 = ELEMS["f32"], ELEMS["i32"]


class Trial:
    """A network of one layer over values that are known."""

    def __init__(self) -> None:
        self.net, self.given = Network(), dict[str, torch.Tensor]()

    def __call__(self, x, elem=None):
        x = torch.as_tensor(x)
        name = f"x{len(self.given)}"
        self.given[name] = x
        return self.net.input(name, elem or elem_of(x.dtype), tuple(x.shape))

    def run(self, layer: Layer) -> list[torch.Tensor]:
        cache = getattr(layer, layer.renews).name if layer.renews else None
        for i, t in enumerate(self.net.add(layer)):
            self.net.output(str(i), t, cache)
        return list(self.net.run(self.given, {}.__getitem__).values())


def rand(*dims: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("op", "wanted"), [("div", [-2, 3]), ("floor_div", [-3, 3])])
def test_division_of_integers_drops_the_fraction_or_rounds_down(op, wanted):
    t = Trial()
    a, b = t(torch.tensor([-5, 6], dtype=torch.int32)), t(torch.tensor([2, 2], dtype=torch.int32))
    assert t.run(ElementWise(op, a, b))[0].tolist() == wanted


def test_halves_round_to_the_even_neighbour():
    t = Trial()
    assert t.run(Unary("round", t([0.5, 1.5, -2.5])))[0].tolist() == [0, 2, -2]


def test_an_activation_takes_the_parameters_of_its_formula():
    x = torch.linspace(-3, 3, 13)
    a, b = 0.5, 2.0
    formulas = {
        "relu": x.clamp(min=0),
        "sigmoid": 1 / (1 + torch.exp(-x)),
        "tanh": torch.tanh(x),
        "softsign": x / (1 + x.abs()),
        "gelu_erf": 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        "gelu_tanh": 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "leaky_relu": torch.where(x >= 0, x, a * x),
        "elu": torch.where(x >= 0, x, a * (torch.exp(x) - 1)),
        "thresholded_relu": torch.where(x > a, x, 0),
        "selu": torch.where(x > 0, b * x, b * (a * torch.exp(x) - a)),
        "softplus": a * torch.log(torch.exp(b * x) + 1),
        "clip": x.clamp(a, b),
        "hard_sigmoid": (a * x + b).clamp(0, 1),
        "scaled_tanh": a * torch.tanh(b * x),
    }
    assert set(formulas) == set(ACTIVATIONS)
    for op, wanted in formulas.items():
        t = Trial()
        how = {k: v for k, v in {"alpha": a, "beta": b}.items() if k in ACTIVATIONS[op]}
        torch.testing.assert_close(t.run(Activation(op, t(x), **how))[0], wanted)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("fill", [7, 7, 0, 1, 2, 7, 7]),
        ("clamp", [0, 0, 0, 1, 2, 2, 2]),
        ("wrap", [1, 2, 0, 1, 2, 0, 1]),
        ("reflect", [2, 1, 0, 1, 2, 1, 0]),
    ],
)
def test_a_slice_outside_of_its_input_goes_by_its_mode(mode, wanted):
    t = Trial()
    x = t(torch.arange(3, dtype=torch.int32))
    assert t.run(Slice(x, (-2,), (7,), mode=mode, fill=7))[0].tolist() == wanted


def test_a_slice_may_go_backwards_and_repeat():
    t = Trial()
    x = t(torch.arange(6, dtype=torch.int32).reshape(6, 1))
    made = t.run(Slice(x, (5, 0), (3, 2), (-2, 0)))[0]
    assert made.tolist() == [[5, 5], [3, 3], [1, 1]]


def test_dims_become_numbers_and_ramps():
    net, n = Network(), sym("T")
    x = net.input("x", F32, (n, 3))
    net.output("dims", net.add(DimValues((n, n * 2 - 1)))[0])
    net.output("ramp", net.add(Linspace(I32, (n, 2), 5, (10, 1)))[0])
    net.output("one", net.add(Constant(F32, (), (0.5,)))[0])
    made = net.run({"x": torch.zeros(3, 3)}, {}.__getitem__)
    assert x.dims[0] == n
    assert made["dims"].tolist() == [3, 5]
    assert made["ramp"].tolist() == [[5, 6], [15, 16], [25, 26]]
    assert made["one"].item() == 0.5


def test_gather_walks_a_batch_with_its_indices():
    t = Trial()
    x, at = rand(2, 5, 3), torch.tensor([[4, 0], [1, 1]], dtype=torch.int32)
    made = t.run(Gather(t(x), t(at), axis=1, batch=1))[0]
    assert torch.equal(made, torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))


def test_an_index_outside_is_an_error():
    t = Trial()
    with pytest.raises(IndexError):
        t.run(Gather(t(rand(4, 2)), t(torch.tensor([4], dtype=torch.int32))))


def test_slices_are_picked_and_placed_by_their_last_index():
    x, at = rand(3, 4, 2), torch.tensor([[2, 1], [0, 3]], dtype=torch.int32)
    t = Trial()
    assert torch.equal(t.run(GatherNd(t(x), t(at)))[0], torch.stack([x[2, 1], x[0, 3]]))
    t, new = Trial(), rand(2, 2, seed=1)
    made = t.run(ScatterNd(t(x), t(at), t(new)))[0]
    wanted = x.clone()
    wanted[2, 1], wanted[0, 3] = new
    assert torch.equal(made, wanted)


def test_one_hot_puts_the_new_dim_where_it_is_asked_for():
    t = Trial()
    hot = t.run(OneHot(t(torch.tensor([2, 0], dtype=torch.int32)), t([-1.0, 1.0]), 3, 0))[0]
    assert hot.tolist() == [[-1, 1], [-1, -1], [1, -1]]


def test_running_sums_go_either_way_with_or_without_the_entry():
    x = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    for exclusive, reverse, wanted in (
        (False, False, [1, 3, 6]),
        (True, False, [0, 1, 3]),
        (False, True, [6, 5, 3]),
        (True, True, [5, 3, 0]),
    ):
        t = Trial()
        assert t.run(CumulativeSum(t(x), 1, exclusive, reverse))[0].tolist() == [wanted]


def test_the_largest_are_sorted_and_known_by_their_place():
    t = Trial()
    values, at = t.run(TopK("max", t([[1.0, 9.0, 4.0, 7.0]]), 2))
    assert values.tolist() == [[9, 7]] and at.tolist() == [[1, 3]] and at.dtype == torch.int32


def test_an_average_of_integers_drops_the_fraction():
    t = Trial()
    assert t.run(Reduce("avg", t(torch.tensor([[-3, 0]], dtype=torch.int32)), (1,)))[0].tolist() == [[-1]]


def test_norm_is_layer_norm_or_group_norm():
    x, s, b = rand(2, 6, 5), rand(1, 1, 5, seed=1), rand(1, 1, 5, seed=2)
    t = Trial()
    made = t.run(Normalization(t(x), t(s), t(b), (2,), 1e-5))[0]
    torch.testing.assert_close(made, torch.nn.functional.layer_norm(x, (5,), s[0, 0], b[0, 0]))
    t, s, b = Trial(), rand(1, 6, 1, seed=1), rand(1, 6, 1, seed=2)
    made = t.run(Normalization(t(x), t(s), t(b), (2,), 1e-5, groups=3))[0]
    torch.testing.assert_close(made, torch.nn.functional.group_norm(x, 3, s.flatten(), b.flatten()))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_by_the_angle_of_their_position(interleaved):
    x, angle = rand(2, 3, 4, 8), rand(10, 3, seed=1)
    at = torch.tensor([[3, 4, 5, 6], [0, 1, 2, 9]], dtype=torch.int32)
    t = Trial()
    given = t(x), t(angle.cos()), t(angle.sin()), t(at)
    made = t.run(RotaryEmbedding(*given, interleaved=interleaved, dim=6))[0]
    first, second = (slice(0, 6, 2), slice(1, 6, 2)) if interleaved else (slice(0, 3), slice(3, 6))
    turned = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angle[at.long()])[:, None]
    torch.testing.assert_close(made[..., first], turned.real)
    torch.testing.assert_close(made[..., second], turned.imag)
    assert torch.equal(made[..., 6:], x[..., 6:])


def test_a_cache_is_written_in_place_padded_or_packed():
    cache, new = torch.zeros(2, 1, 6, 2), rand(2, 1, 3, 2)
    past = torch.tensor([0, 3], dtype=torch.int32)
    t = Trial()
    (made,) = t.run(KVCacheUpdate(t(cache), t(new), t(past)))
    assert made.data_ptr() == cache.data_ptr()
    assert torch.equal(cache[0, :, :3], new[0]) and torch.equal(cache[1, :, 3:], new[1])
    assert not cache[0, :, 3:].any()
    t, cache, starts = Trial(), torch.zeros(2, 1, 6, 2), torch.tensor([0, 1, 3], dtype=torch.int32)
    rows = rand(3, 1, 2, seed=1)
    t.run(KVCacheUpdate(t(cache), t(rows), t(past), t(starts)))
    assert torch.equal(cache[0, 0, :1], rows[:1, 0]) and torch.equal(cache[1, 0, 3:5], rows[1:, 0])


def test_writing_behind_the_end_of_a_cache_is_an_error():
    t = Trial()
    given = t(torch.zeros(1, 1, 4, 2)), t(rand(1, 1, 3, 2)), t(torch.tensor([2], dtype=torch.int32))
    with pytest.raises(AssertionError, match="behind the cache's end"):
        t.run(KVCacheUpdate(*given))


def test_a_cache_comes_from_outside_and_leaves_again():
    net = Network()
    cache = net.input("c", F32, (1, 1, 4, 2))
    new, past = net.input("n", F32, (1, 1, 1, 2)), net.input("p", I32, (1,))
    (made,) = net.add(KVCacheUpdate(cache, new, past))
    net.output("c", made)
    with pytest.raises(NotExpressible, match="leaves it as an alias"):
        net.check()


def attended(q, k, v, seen):
    """Attention of one sequence, ``[heads, tokens, features]``."""
    group = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    return (q @ k.mT).masked_fill(~seen, float("-inf")).softmax(-1) @ v


def test_lower_right_counts_from_the_last_key_that_is_there():
    q, k, v = rand(2, 4, 3, 8), rand(2, 2, 10, 8, seed=1), rand(2, 2, 10, 8, seed=2)
    t, lengths = Trial(), torch.tensor([5, 10], dtype=torch.int32)
    made = t.run(Attention(t(q), t(k), t(v), lengths=t(lengths), causal="lower_right"))[0]
    for b, used in enumerate(lengths.tolist()):
        seen = torch.arange(used) <= torch.arange(3)[:, None] + used - 3
        torch.testing.assert_close(made[b], attended(q[b], k[b, :, :used], v[b, :, :used], seen))


def test_upper_left_counts_from_the_first_key():
    q, k, v = rand(1, 2, 3, 8), rand(1, 2, 5, 8, seed=1), rand(1, 2, 5, 8, seed=2)
    t = Trial()
    made = t.run(Attention(t(q), t(k), t(v), causal="upper_left"))[0]
    torch.testing.assert_close(made[0], attended(q[0], k[0], v[0], torch.ones(3, 5).tril().bool()))


@pytest.mark.parametrize("added", [False, True])
def test_a_mask_hides_or_is_added(added):
    q, k, v = rand(2, 2, 3, 8), rand(2, 1, 5, 8, seed=1), rand(2, 1, 5, 8, seed=2)
    mask = rand(2, 1, 3, 5, seed=3)
    seen = mask > -1
    t = Trial()
    made = t.run(Attention(t(q), t(k), t(v), t(mask if added else seen)))[0]
    scores = q @ k.mT
    scores = scores + mask if added else scores.masked_fill(~seen, float("-inf"))
    torch.testing.assert_close(made, scores.softmax(-1) @ v)


def test_packed_queries_are_what_padded_ones_are_row_by_row():
    q, k, v = rand(4, 4, 8), rand(2, 2, 10, 8, seed=1), rand(2, 2, 10, 8, seed=2)
    starts, lengths = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([7, 2], dtype=torch.int32)
    t = Trial()
    given = t(q), t(k), t(v), None, t(lengths), t(starts)
    made = t.run(Attention(*given, causal="lower_right"))[0]
    for b, (first, end) in enumerate(((0, 3), (3, 4))):
        t = Trial()
        rows = q[first:end].transpose(0, 1)[None]
        one = t(rows), t(k[b : b + 1]), t(v[b : b + 1]), None, t(lengths[b : b + 1])
        wanted = t.run(Attention(*one, causal="lower_right"))[0]
        torch.testing.assert_close(made[first:end], wanted[0].transpose(0, 1))


def test_packed_keys_belong_to_their_sequence():
    q, kv = rand(3, 2, 8), rand(5, 2, 8, seed=1)
    t = Trial()
    starts = t(torch.tensor([0, 2, 3], dtype=torch.int32)), t(torch.tensor([0, 4, 5], dtype=torch.int32))
    made = t.run(Attention(t(q), t(kv), t(kv), None, None, *starts, causal="lower_right"))[0]
    torch.testing.assert_close(made[2], kv[4])  # its sequence has this key alone


def test_probabilities_pass_through_eight_bits():
    q, k, v = rand(1, 1, 2, 8), rand(1, 1, 5, 8, seed=1), rand(1, 1, 5, 8, seed=2)
    t = Trial()
    scale = t(torch.tensor(1 / 448))
    how = {"probability_scale": scale, "probability_elem": ELEMS["f8e4m3"]}
    made = t.run(Attention(t(q), t(k), t(v), **how))[0]
    p = (q @ k.mT).softmax(-1)
    wanted = (p * 448).to(torch.float8_e4m3fn).float() / 448 @ v
    torch.testing.assert_close(made, wanted)


def test_experts_are_gated_and_weighed():
    x, gate, up, down = rand(1, 3, 4), rand(5, 4, 6, seed=1), rand(5, 4, 6, seed=2), rand(5, 6, 4, seed=3)
    biases = rand(5, 6, seed=5), rand(5, 6, seed=6), rand(5, 4, seed=7)
    chosen = torch.tensor([[[0, 4], [2, 1], [4, 4]]], dtype=torch.int32)
    scores = rand(1, 3, 2, seed=4)
    t = Trial()
    given = t(x), t(chosen), t(scores), t(gate), t(up), t(down)
    made = t.run(MoE(*given, biases=(t(biases[0]), t(biases[1]), t(biases[2]))))[0]
    wanted = torch.zeros(3, 4)
    for row in range(3):
        for e, s in zip(chosen[0, row].tolist(), scores[0, row], strict=True):
            g, u = x[0, row] @ gate[e] + biases[0][e], x[0, row] @ up[e] + biases[1][e]
            wanted[row] += s * ((torch.nn.functional.silu(g) * u) @ down[e] + biases[2][e])
    torch.testing.assert_close(made[0], wanted)


def test_four_bits_of_floating_point_round_to_the_even_code():
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, -0.25, -0.75, 2.6])
    made = to_quantized(x, ELEMS["f4e2m1"]).float()
    assert made.tolist() == [0, 1, 1, 2, 2, 4, 4, 6, 0, -1, 3]


@pytest.mark.parametrize(
    ("elem", "dims", "axis"),
    [(e, d, a) for e in ("i8", "i4", "f8e4m3") for d, a in (((), None), ((4,), 0), ((4, 2), None))]
    + [("i8", (2, 1), None), ("f8e4m3", (2, 1), None)],
)
def test_what_is_quantized_comes_back_within_half_a_step(elem, dims, axis):
    most = {"i8": 127, "i4": 7, "f8e4m3": 448}[elem]
    x = rand(4, 8)
    scale = torch.full(dims, float(x.abs().max()) / most)
    t = Trial()
    s = t(scale)
    (q,) = t.net.add(Quantize(t(x), s, ELEMS[elem], axis))
    back = t.run(Dequantize(q, s, F32, axis))[0]
    step = scale.max() if elem != "f8e4m3" else x.abs().max() / 8
    assert (back - x).abs().max() <= step / 2 + 1e-6


def test_dynamic_blocks_have_a_scale_each():
    x = rand(2, 64) * torch.tensor([1.0, 100.0])[:, None]
    t = Trial()
    data, scale = t.run(DynamicQuantize(t(x), t(torch.tensor(0.1)), ELEMS["f4e2m1"]))
    assert scale.shape == (2, 4) and scale.dtype == torch.float8_e4m3fn
    used = (scale.float() * 0.1).repeat_interleave(16, 1)
    assert ((data.float() * used - x).abs() <= used * 1.01).all()  # the widest step of the format is 2
    t = Trial()
    data, scale = t.run(DynamicQuantize(t(x), None, ELEMS["f8e4m3"]))
    assert scale.shape == (2, 2) and scale.dtype == torch.float8_e8m0fnu
    used = scale.float().repeat_interleave(32, 1)
    assert ((data.float() * used - x).abs() <= x.abs() / 16 + used * 2**-9).all()


def test_a_rank_alone_hears_itself():
    t, x = Trial(), rand(2, 3)
    assert torch.equal(t.run(DistCollective("all_reduce", t(x), (0,), "sum"))[0], x)


def test_an_error_names_the_rule_and_where_it_is_from():
    t = Trial()
    with pytest.raises(NotExpressible) as raised:
        t.net.add(Attention(t(rand(1, 8, 2, 4)), t(rand(1, 3, 5, 4)), t(rand(1, 3, 5, 4))))
    assert str(raised.value) == (
        "Attention: 3 KV heads do not divide 8 query heads\n"
        "hint: see docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/Attention.html"
    )
