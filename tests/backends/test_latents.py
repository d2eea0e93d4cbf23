"""Caches that do not keep keys and values of one size: latents as multi-head latent attention has them."""

import re

import pytest

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.plan import kv_plan

from .written import TARGETS, Written, answers, serve

LATENT = """# irloom 1
T: dim[1, 8192]; S: dim[1, 256]

def absorbed(
    x: f32[T, 16],
    seqs: seqs[T, S],
    ln: f32[16] = weight("l.{i}.ln"),
    up: f32[U, 16] = weight("l.{i}.up"),
    down: f32[16, O] = weight("l.{i}.down"),
):
    h = rms_norm(x, ln)
    u = linear(h, up)
    q, k = split(u, dim=1, sizes=(Q, K))
    qh = reshape(q, dims=(T, 3, K))
    kh = reshape(k, dims=(T, 1, K))
    vh = slice(kh, dim=2, start=0, stop=V)
    a = attention(qh, kh, vh, seqs, scale=0.3)
    flat = reshape(a, dims=(T, O))
    d = linear(flat, down)
    out = add(x, d)
    return out

def expanded(
    x: f32[T, 16],
    seqs: seqs[T, S],
    ln: f32[16] = weight("l.{i}.ln"),
    up: f32[56, 16] = weight("l.{i}.wide"),
    down: f32[16, 8] = weight("l.{i}.narrow"),
):
    h = rms_norm(x, ln)
    u = linear(h, up)
    q, k, v = split(u, dim=1, sizes=(24, 24, 8))
    qh = reshape(q, dims=(T, 2, 12))
    kh = reshape(k, dims=(T, 2, 12))
    vh = reshape(v, dims=(T, 2, 4))
    a = attention(qh, kh, vh, seqs, scale=0.3, window=10)
    flat = reshape(a, dims=(T, 8))
    d = linear(flat, down)
    out = add(x, d)
    return out

def main(ids: i32[T], seqs: seqs[T, S], embed: f32[40, 16] = weight("embed"), ln: f32[16] = weight("l.4.ln")):
    x = embedding(ids, embed)
    for i in range(0, 4, 2):
        x = absorbed[i](x, seqs)
        x = expanded[i + 1](x, seqs)
    h = rms_norm(x, ln)
    last = last_rows(h, seqs)
    logits = linear(last, embed)
    return logits
"""


def latent(keys: int, values: int) -> Written:
    """A model whose absorbed layers have keys of so many features, of which the first are values."""
    sizes = {"K": keys, "V": values, "Q": 3 * keys, "O": 3 * values, "U": 4 * keys}
    text = re.sub(r"\b[KVQOU]\b", lambda found: str(sizes[found[0]]), LATENT)
    layer = {"ln": (16,), "up": (4 * keys, 16), "down": (16, 3 * values), "wide": (56, 16), "narrow": (16, 8)}
    weights = {"embed": (40, 16), **{f"l.{i}.{n}": d for i in range(5) for n, d in layer.items()}}
    return Written(text, RandomCheckpoint(5, weights))


PROMPTS = [[5], list(range(8)), [(3 * i) % 40 for i in range(37)], [9, 8] * 12]


@pytest.mark.parametrize(("keys", "values"), [(12, 6), (48, 32)])
@pytest.mark.parametrize("target", TARGETS)
def test_answers_are_those_of_the_plain_program(target, keys, values, tmp_path):
    model = latent(keys, values)
    engine = model.build(target, tmp_path / "engine")
    expected = [model.alone(prompt) for prompt in PROMPTS]
    for limits in ({}, {"max_tokens": 5}):
        assert answers(serve(engine, **limits), PROMPTS) == expected


def test_a_cache_keeps_no_more_than_is_read():
    full, window = kv_plan(latent(12, 6).planned("cpu")).groups
    assert full.token_bytes == 2 * 4 * 12, "keys, whose first features are the values"
    assert window.token_bytes == 2 * 4 * 2 * (12 + 4)


@pytest.mark.skipif("cpu" not in TARGETS, reason="needs a C++ compiler")
def test_both_are_kernels_on_the_cpu():
    from irloom.backends.cpu.lower import lower

    assert not set(lower(latent(12, 6).planned("cpu")).fallbacks) & {"kv_append", "paged_attention"}
