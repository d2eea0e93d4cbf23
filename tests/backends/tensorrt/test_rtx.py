"""What TensorRT for RTX has no kernel for, although the rules of the layers allow it.

Whoever lowers a model keeps away from these forms. A release that has one of them fails here, and is welcome.
"""

from __future__ import annotations

import pytest

from irloom.backends.tensorrt.layers.attention import Attention
from irloom.backends.tensorrt.layers.cache import KVCacheUpdate
from irloom.backends.tensorrt.layers.moe import MoE
from irloom.backends.tensorrt.library import LibraryMissing, load
from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS

from .asked import B, Given, N, Question, T, network
from .real import refusal

pytestmark = pytest.mark.tensorrt


@pytest.fixture(autouse=True)
def rtx() -> None:
    try:
        if load().name != "tensorrt_rtx":
            pytest.skip("another library is installed")
    except LibraryMissing as e:
        pytest.skip(str(e))


def padded(elem: str = "bf16", dim: int = 64, tokens: Dim = N, decomposable: bool = False) -> Question:
    """Causal attention of padded queries over a cache of 128 keys."""

    def ask(g: Given) -> Attention:
        q, kv = g(elem, B, 8, tokens, dim), (g(elem, B, 2, 128, dim), g(elem, B, 2, 128, dim))
        return Attention(q, *kv, lengths=g("i32", B), causal="lower_right", decomposable=decomposable)

    return ask


def packed(how: bool) -> Question:
    """Causal attention of packed queries over a cache of 128 keys."""

    def ask(g: Given) -> Attention:
        q, kv = g("bf16", T, 8, 64), (g("bf16", B, 2, 128, 64), g("bf16", B, 2, 128, 64))
        starts, lengths = g("i32", B + 1), g("i32", B)
        return Attention(q, *kv, lengths=lengths, query_starts=starts, causal="lower_right", decomposable=how)

    return ask


def ragged(g: Given) -> Attention:
    """Causal attention of packed queries over packed keys."""
    rows = g("bf16", T, 8, 64), g("bf16", T, 2, 64), g("bf16", T, 2, 64)
    starts = g("i32", B + 1)
    return Attention(*rows, query_starts=starts, key_starts=starts, causal="lower_right")


def quantized(how: bool) -> Question:
    """Attention whose probabilities are f8e4m3."""

    def ask(g: Given) -> Attention:
        q, kv = g("bf16", B, 8, N, 64), (g("bf16", B, 2, 128, 64), g("bf16", B, 2, 128, 64))
        scale, lengths = g.number("bf16", 0.002), g("i32", B)
        f8 = ELEMS["f8e4m3"]
        return Attention(
            q, *kv, lengths=lengths, decomposable=how, probability_scale=scale, probability_elem=f8
        )

    return ask


def experts(elem: str) -> Question:
    def ask(g: Given) -> MoE:
        x, chosen, scores = g(elem, 1, T, 64), g("i32", 1, T, 2), g(elem, 1, T, 2)
        weights = g.weight(elem, 4, 64, 32), g.weight(elem, 4, 64, 32), g.weight(elem, 4, 32, 64)
        return MoE(x, chosen, scores, *weights)

    return ask


NO_KERNEL = {
    "packed queries over a padded cache": packed(False),
    "packed queries over a padded cache, decomposable": packed(True),
    "packed queries over packed keys": ragged,
    "a head of 8, several tokens": padded(dim=8),
    "a head of 20": padded(dim=20),
    "a head of 20, decomposable": padded(dim=20, decomposable=True),
    "a head of 320": padded(dim=320),
    "f32, several tokens": padded("f32"),
    "probabilities of eight bits": quantized(False),
    "experts of f32": experts("f32"),
    "experts of f16": experts("f16"),
    "experts of bf16": experts("bf16"),
}

KERNEL = {
    "a head of 8, one token": padded(dim=8, tokens=1),
    "a head of 16, several tokens": padded(dim=16),
    "a head of 256, several tokens": padded(dim=256),
    "a head of 320, decomposable": padded(dim=320, decomposable=True),
    "f32, one token": padded("f32", tokens=1),
    "f32, several tokens, decomposable": padded("f32", decomposable=True),
    "probabilities of eight bits, decomposable": quantized(True),
    "packed rows into a cache": lambda g: KVCacheUpdate(
        g("bf16", B, 2, 32, 16), g("bf16", T, 2, 16), g("i32", B), g("i32", B + 1)
    ),
}


@pytest.mark.parametrize("form", NO_KERNEL)
def test_no_kernel(form: str) -> None:
    assert refusal(network(NO_KERNEL[form])) is not None


@pytest.mark.parametrize("form", KERNEL)
def test_a_kernel_next_to_it(form: str) -> None:
    assert refusal(network(KERNEL[form])) is None


def test_the_library_says_that_it_takes_no_packed_queries() -> None:
    assert not load().packed
