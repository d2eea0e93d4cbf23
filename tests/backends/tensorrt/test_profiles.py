"""Optimization profiles: one for steps that decode, one for chunks, and what lies outside of both is told."""

from dataclasses import replace

import pytest

from irloom.backends.core import Limits
from irloom.backends.tensorrt.network import Network
from irloom.backends.tensorrt.profiles import Ranges, choose, profiles
from irloom.ir.dims import sym
from irloom.ir.elem import ELEMS
from irloom.ir.errors import RequestError

T, S, B, N, L = map(sym, "TSBNL")
RANGES = Ranges(max_tokens=512, max_seqs=64, max_context=4096)
I32, BF16 = ELEMS["i32"], ELEMS["bf16"]


def network(*inputs: tuple[str, tuple]) -> Network:
    net = Network()
    for name, dims in inputs:
        net.input(name, I32, dims)
    return net


def test_a_decode_step_has_one_token_a_slot_and_a_chunk_up_to_max_tokens():
    net = network(("ids", (T,)), ("pad", (B, N)), ("starts", (B + 1,)))
    decode, chunk, wider, widest = profiles(net, RANGES)
    ids, pad, starts = net.inputs
    names = ["decode", "chunk 2x512", "chunk 16x64", "chunk 64x16"]
    assert [p.name for p in (decode, chunk, wider, widest)] == names
    assert decode.shapes(ids) == ((1,), (64,), (64,))
    assert decode.shapes(pad) == ((1, 1), (64, 1), (64, 1))
    assert decode.shapes(starts) == ((2,), (65,), (65,))
    assert chunk.shapes(ids) == ((1,), (512,), (512,))
    assert chunk.shapes(pad) == ((1, 1), (1, 512), (2, 512))
    assert wider.shapes(pad) == ((1, 1), (1, 64), (16, 64))
    assert widest.shapes(pad) == ((1, 1), (1, 16), (64, 16))


def test_slots_that_are_not_aligned_are_all_in_every_step():
    net = network(("pad", (B, N)))
    decode, chunk = profiles(net, replace(RANGES, aligned=False))
    assert decode.shapes(net.inputs[0])[2] == (64, 1)
    assert chunk.shapes(net.inputs[0])[2] == (64, 512)


def test_networks_that_see_no_slots_have_one_profile_for_chunks():
    made = profiles(network(("ids", (T,))), RANGES)
    assert [p.name for p in made] == ["decode", "chunk 2x512"]


def test_a_cache_is_as_long_as_the_context_and_a_chunk_behind_it():
    net = network(("ids", (T,)), ("kv.k", (B, 2, L, 16)))
    assert profiles(net, RANGES)[0].shapes(net.inputs[1])[2] == (64, 2, 4608, 16)


def test_a_network_that_sees_no_rows_has_one_profile():
    (only,) = profiles(network(("kv.k", (L,))), RANGES)
    assert only.name == "any"


def test_a_step_takes_the_first_profile_it_fits():
    made = profiles(network(("ids", (T,)), ("pad", (B, N))), RANGES)
    assert choose(made, {"T": 3, "B": 4, "N": 1}) == 0
    assert choose(made, {"T": 3, "B": 2, "N": 2}) == 1
    assert choose(made, {"T": 3, "B": 4, "N": 2}) == 2
    with pytest.raises(RequestError) as caught:
        choose(made, {"T": 513, "B": 4, "N": 500})
    assert caught.value.message == (
        "no profile of the engine takes this step: T is 513, and the profile chunk 64x16 takes 1 to 512"
    )


@pytest.mark.parametrize(
    ("limits", "context", "said", "option"),
    [
        (
            Limits(max_tokens=1024),
            256,
            "max_tokens is 1,024, but the engine's profiles end at 512 (dim T,",
            "max_tokens=1024",
        ),
        (
            Limits(max_seqs=65),
            256,
            "max_seqs is 65, but the engine's profiles end at 64 (dim S,",
            "max_seqs=65",
        ),
        (
            Limits(),
            8192,
            "max_context is 8,192, but the engine's profiles end at 4,096 (dim L,",
            "context=8192",
        ),
    ],
)
def test_limits_past_the_profiles_are_refused_with_the_dim_the_limit_and_the_flag(
    limits, context, said, option
):
    with pytest.raises(RequestError) as caught:
        RANGES.check(limits, context, "irloom compile m -o e")
    assert caught.value.message.startswith(said)
    assert "irloom compile m -o e --with 'kv-plan(layout=linear, " in caught.value.hint
    assert option in caught.value.hint


def test_limits_that_nobody_chose_go_as_far_as_the_profiles():
    small = Ranges(max_tokens=32, max_seqs=8, max_context=4096)
    assert small.fit(Limits()) == Limits(max_tokens=32, max_seqs=8)
    assert small.fit(Limits(max_tokens=33)).max_tokens == 33  # which ``check`` refuses
    assert RANGES.fit(Limits(max_tokens=100)) == Limits(max_tokens=100)


def test_limits_within_the_profiles_need_no_rebuild():
    RANGES.check(Limits(max_tokens=512, max_seqs=64), 4096, "")
    RANGES.check(Limits(max_tokens=1, max_seqs=1), 1, "")
