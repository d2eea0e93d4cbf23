"""Attention over slots is the op: each of its forms, in steps that decode, prefill and leave slots out."""

from __future__ import annotations

from typing import Any

import pytest

from irloom.backends.tensorrt.lower import lower
from irloom.backends.tensorrt.network import Network
from irloom.backends.tensorrt.program import Outside, Segment
from tests.backends.tensorrt.real import DECODE, RANGES, refusal
from tests.backends.tensorrt.traffic import CONTEXT, Beside, module

TOLERANCE = {"f32": 2e-5, "f16": 4e-3, "bf16": 3e-2}


def text(
    elem: str = "f32",
    heads: int = 4,
    kv: int = 2,
    dim: int = 8,
    values: int | None = None,
    given: dict[str, str] | None = None,
    kept: str | None = None,
    first: int | None = None,
    **attrs: object,
) -> str:
    """``kv_append`` and ``paged_attention``, with operands ``given`` by name and type.

    A cache of keys only (``values=0``) has values that are the ``first`` features of its keys.
    """
    given = given or {}
    own = "" if values is None else f"(values={values})"
    cache = f"paged[{kept or elem}, {CONTEXT}]{own}[P, {kv}, {dim}]"
    v = dim if values is None else values
    features = v if first is None else first
    attrs = {**attrs, "values": first} if first is not None else attrs
    extra = "".join(f", {name}: {t}" for name, t in given.items())
    names = "".join(f", {name if name in given else None}" for name in ("sinks", "slopes", "index", "bias"))
    said = "".join(f", {k}={x}" for k, x in {"scale": 0.4, **attrs}.items())
    value = f"v: {elem}[T, {kv}, {v}], " if v else ""
    return (
        f"def main(q: {elem}[T, {heads}, {dim}], k: {elem}[T, {kv}, {dim}], {value}kv: {cache}, "
        f"seqs: seqs[T, S]{extra}) -> ({elem}[T, {heads}, {features}], {cache}):\n"
        f"    kv1: {cache} = kv_append(kv, k, {'v' if v else None}, seqs)\n"
        f"    y: {elem}[T, {heads}, {features}] = paged_attention(q, kv1, seqs{names}{said})\n"
        "    return y, kv1\n"
    )


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "all that is behind": ({}, ""),
    "one head a key": ({"kv": 4}, ""),
    "one key for all heads": ({"kv": 1}, ""),
    "scale 1": ({"scale": 1.0}, ""),
    "a window": ({"window": 5}, "masked: window 5"),
    "chunks": ({"chunk": 6}, "masked: chunk 6"),
    "a window in chunks": ({"window": 3, "chunk": 6}, "masked: window 3, chunk 6"),
    "a window that reaches all": ({"window": 100, "chunk": 64}, ""),
    "latents": ({"kv": 1, "values": 0, "first": 6}, ""),
    "values less wide": ({"values": 6}, "products and a softmax: values of 6 features, keys of 8"),
    "values wider": ({"values": 12}, "products and a softmax: values of 12 features, keys of 8"),
    "softcap": ({"softcap": 2.0}, "products and a softmax: softcap"),
    "softcap in a window": ({"softcap": 2.0, "window": 4}, "products and a softmax: softcap"),
    "softcap of latents": (
        {"kv": 1, "values": 0, "first": 6, "softcap": 2.0}, "products and a softmax: softcap",
    ),
    "sinks": ({"given": {"sinks": "f32[4]"}}, "products and a softmax: sinks"),
    "sinks of tokens": ({"given": {"sinks": "f32[T, 4]"}, "window": 5}, "products and a softmax: sinks"),
    "slopes": ({"given": {"slopes": "f32[4]"}}, "products and a softmax: slopes"),
    "bias": ({"given": {"bias": "f32[T, 4, 3]"}}, "products and a softmax: bias"),
    "heads of 12": ({"elem": "bf16", "dim": 12}, ""),
    "everything": (
        {
            "given": {"sinks": "f32[4]", "slopes": "f32[4]", "bias": "f32[T, 4, 7]"},
            "values": 6, "window": 9, "chunk": 16, "softcap": 3.0,
        },
        "products and a softmax: softcap, sinks, slopes, bias, values of 6 features, keys of 8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("filled", [False, True], ids=["ragged", "filled"])
@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_the_op(name: str, filled: bool) -> None:
    options, form = FORMS[name]
    beside = Beside(module(text(**options)), seed=len(name), filled=filled)
    beside.run(8, TOLERANCE[options.get("elem", "f32")])
    (said,) = [n.form for n in beside.program.nodes if n.node.op.name == "paged_attention"]
    assert said == form


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_the_op_over_many_steps(name: str) -> None:
    options = FORMS[name][0]
    Beside(module(text(**options)), seed=11).run(50, TOLERANCE[options.get("elem", "f32")])


@pytest.mark.parametrize("elem", ["f16", "bf16"])
@pytest.mark.parametrize(
    "attrs",
    [{}, {"window": 5}, {"softcap": 4.0}, {"dim": 12}, {"dim": 12, "values": 6}],
    ids=["all", "window", "softcap", "12 features", "12 and 6 features"],
)
def test_shorter_floats(elem: str, attrs: dict[str, Any]) -> None:
    Beside(module(text(elem, **attrs))).run(6, TOLERANCE[elem])


PACKED: dict[str, tuple[dict[str, Any], bool]] = {
    "all that is behind": ({}, True),
    "one key for all heads": ({"kv": 1}, True),
    "latents": ({"kv": 1, "values": 0, "first": 6}, True),
    "a window that reaches all": ({"window": 100}, True),
    "a window": ({"window": 5}, False),
    "softcap": ({"softcap": 2.0}, False),
    "a head of 12": ({"dim": 12}, True),
}


@pytest.mark.parametrize("filled", [False, True], ids=["ragged", "filled"])
@pytest.mark.parametrize("name", PACKED)
def test_queries_stay_packed_where_the_layer_needs_no_mask(name: str, filled: bool) -> None:
    options, packed = PACKED[name]
    beside = Beside(module(text("bf16", **options)), seed=len(name), filled=filled, packed=True)
    beside.run(8, TOLERANCE["bf16"])
    assert beside.program.packed is packed
    assert ("pad" in {t.name for t in beside.network.inputs}) is not packed


def test_a_cache_of_shorter_floats() -> None:
    Beside(module(text("f32", kept="bf16"))).run(6, TOLERANCE["bf16"])


def test_masks_are_made_once_a_network() -> None:
    layer = (
        "    kv{j}: paged[f32, 24][P, 2, 8] = kv_append(kv{i}, k, v, seqs)\n"
        "    y{j}: f32[T, 4, 8] = paged_attention(y{i}, kv{j}, seqs, scale=1.0, window={w})\n"
    )
    cache = "paged[f32, 24][P, 2, 8]"
    source = (
        f"def main(y0: f32[T, 4, 8], k: f32[T, 2, 8], v: f32[T, 2, 8], kv0: {cache}, kw0: {cache}, "
        f"kx0: {cache}, seqs: seqs[T, S]) -> (f32[T, 4, 8], {cache}, {cache}, {cache}):\n"
        + layer.format(i=0, j=1, w=5)
        + layer.format(i=1, j=2, w=5).replace("kv1", "kw0").replace("kv2", "kw1")
        + layer.format(i=2, j=3, w=7).replace("kv2", "kx0").replace("kv3", "kx1")
        + "    return y3, kv1, kw1, kx1\n"
    )
    beside = Beside(module(source))
    beside.run(6, TOLERANCE["f32"])
    masks = {p.layer.mask for p in beside.network.layers if type(p.layer).__name__ == "Attention"}  # type: ignore[attr-defined]
    assert len(masks) == 2


REAL: dict[str, dict[str, Any]] = {
    "Llama": {"heads": 32, "kv": 8, "dim": 128},
    "Gemma 3": {"heads": 8, "kv": 4, "dim": 256, "window": 16},
    "Gemma 2": {"heads": 8, "kv": 4, "dim": 256, "window": 16, "softcap": 50.0},
    "gpt-oss": {"heads": 64, "kv": 8, "dim": 64, "window": 16, "given": {"sinks": "bf16[64]"}},
    "DeepSeek": {"heads": 16, "kv": 1, "dim": 576, "values": 0, "first": 512},
    "DeepSeek as it is written": {"heads": 16, "kv": 16, "dim": 192, "values": 128},
    "heads of 12": {"heads": 4, "kv": 2, "dim": 12},
    "Phi": {"heads": 32, "kv": 32, "dim": 80},
    "Llama 4": {"heads": 40, "kv": 8, "dim": 128, "chunk": 16},
    "OpenLLaMA": {"heads": 32, "kv": 32, "dim": 100},
}


def network(**options: Any) -> Network:
    (segment,) = lower(module(text(**options)), split=False).parts
    assert isinstance(segment, Segment)
    return segment.network


@pytest.mark.tensorrt
@pytest.mark.parametrize("elem", ["f16", "bf16"])
@pytest.mark.parametrize("model", REAL)
def test_the_library_builds_attention_as_models_have_it(model: str, elem: str) -> None:
    given = {k: v.replace("bf16", elem) for k, v in REAL[model].get("given", {}).items()}
    assert refusal(network(elem=elem, **{**REAL[model], "given": given}), RANGES, DECODE) is None


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("elem", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", FORMS)
def test_the_library_builds_each_form(name: str, elem: str) -> None:
    assert refusal(network(**{**FORMS[name][0], "elem": elem}), RANGES, DECODE) is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (text(given={"index": "i32[T, 3]"}), "no layer attends to chosen keys alone"),
        (text("f16", kept="f8e4m3"), "a cache of f8e4m3: layers keep f32, f16, bf16"),
    ],
    ids=["chosen keys", "f8 cache"],
)
def test_what_no_layer_has_a_word_for_stays_outside(source: str, reason: str) -> None:
    outside = [p for p in lower(module(source)).parts if isinstance(p, Outside)]
    assert any(reason in p.reason for p in outside)
