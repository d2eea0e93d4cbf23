"""Bounds of what a machine could answer, computed by hand for programs of one or two nodes."""

import pytest

from irloom.driver.load import Load
from irloom.driver.roofline import bounds, least_seconds
from irloom.ir.device import device
from irloom.ir.parse import parse

H200 = device("h200")
LINEAR = """def main(x: bf16[T, 4096], w: bf16[14336, 4096] = weight("w")):
    y = linear(x, w)
    return y"""
GATED = LINEAR.replace("return y", "z = silu(y)\n    return z")
ATTENTION = """def main(q: bf16[T, 32, 128], kv: paged[bf16, 64][P, 8, 128], seqs: seqs[T, S]):
    y = paged_attention(q, kv, seqs, scale=0.1)
    return y"""
WEIGHT, PRODUCT = 2 * 4096 * 14336 / 4.8e12, 2 * 4096 * 14336 / 989.4e12


def test_one_row_takes_as_long_as_its_weight():
    """The row, and what is made of it, need not leave the chip."""
    assert least_seconds(parse(LINEAR), H200, 1, 1, 1) == pytest.approx(WEIGHT)


def test_what_follows_many_rows_may_find_them_on_the_chip():
    """So that a prompt's time is that of its products and little more, however little is fused."""
    alone, gated = (least_seconds(parse(text), H200, 2048, 1, 2048) for text in (LINEAR, GATED))
    assert alone == pytest.approx(2048 * PRODUCT)
    assert alone < gated < 1.001 * alone


def test_caches_are_read_once_for_each_sequence():
    assert least_seconds(parse(ATTENTION), H200, 64, 64, 1000) == pytest.approx(
        64 * 1000 * 2 * 2 * 8 * 128 / 4.8e12
    )


def test_many_requests_share_the_weights_of_prompts_and_of_steps():
    """Prompts of 4 tokens, 8 at once, read together; then each of 2 steps more reads the weight."""
    found = bounds(parse(LINEAR), H200, Load(16, 4, 3, seqs=8))
    assert found.decode_per_s == pytest.approx(1 / WEIGHT)
    assert found.first_token_s == pytest.approx(WEIGHT)
    assert found.output_per_s == pytest.approx(8 * 3 / (3 * WEIGHT))


def test_the_bytes_that_an_engine_counts_are_believed():
    assert bounds(parse(LINEAR), H200, Load(1, 4, 3), read=4800).decode_per_s == pytest.approx(1e9)
