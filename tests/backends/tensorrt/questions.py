"""Layers in the forms that a lowering may ask for, allowed and not: one question each."""

from __future__ import annotations

from collections.abc import Iterator

from irloom.backends.tensorrt.layers import elementwise as ew
from irloom.backends.tensorrt.layers.attention import Attention
from irloom.backends.tensorrt.layers.cache import KVCacheUpdate
from irloom.backends.tensorrt.layers.collective import DistCollective
from irloom.backends.tensorrt.layers.einsum import Einsum
from irloom.backends.tensorrt.layers.fill import DimValues, Linspace
from irloom.backends.tensorrt.layers.index import (
    Gather,
    GatherElements,
    GatherNd,
    OneHot,
    ScatterElements,
    ScatterNd,
)
from irloom.backends.tensorrt.layers.matmul import MatrixMultiply
from irloom.backends.tensorrt.layers.normalization import Normalization
from irloom.backends.tensorrt.layers.quantize import Dequantize, DynamicQuantize, Quantize
from irloom.backends.tensorrt.layers.reduce import CumulativeSum, Reduce, Softmax, TopK
from irloom.backends.tensorrt.layers.rotary import RotaryEmbedding
from irloom.backends.tensorrt.layers.shape import Concatenation, Shuffle, Slice
from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS

from .asked import B, Given, N, Question, S, T

PLAIN = ("f32", "f16", "bf16", "i32", "i64", "bool")
STORED = ("f8e4m3", "i4", "f4e2m1")


def elementwise() -> Iterator[tuple[str, Question]]:
    for op in (*ew.ARITHMETIC, *ew.COMPARISONS, *ew.LOGICAL):
        for e in PLAIN:
            yield f"{op} of {e}", lambda g, op=op, e=e: ew.ElementWise(op, g(e, T, 8), g(e, 1, 8))
    for op in (*ew.UNARY_FLOAT, *ew.UNARY_SIGNED, *ew.UNARY_TEST, "not"):
        for e in PLAIN:
            yield f"{op} of {e}", lambda g, op=op, e=e: ew.Unary(op, g(e, T, 8))
    for op, takes in ew.ACTIVATIONS.items():
        how = {k: {"alpha": 0.5, "beta": 2.0}[k] for k in takes}
        for e in PLAIN:
            yield f"{op} of {e}", lambda g, op=op, e=e, how=how: ew.Activation(op, g(e, T, 8), **how)
    for e in (*PLAIN, "u8", "i8", *STORED):
        for to in (*PLAIN, "u8", "f8e4m3"):
            yield f"{e} to {to}", lambda g, e=e, to=to: ew.Cast(g(e, T, 8), ELEMS[to])
    for e in PLAIN:
        yield f"select of {e}", lambda g, e=e: ew.Select(g("bool", T, 1), g(e, T, 8), g(e, 1, 8))
    yield "ranks that differ", lambda g: ew.ElementWise("sum", g("f32", T, 8), g("f32", 8))
    yield "dims that do not broadcast", lambda g: ew.ElementWise("sum", g("f32", T, 8), g("f32", T, 4))
    yield "elements that differ", lambda g: ew.ElementWise("sum", g("f32", T, 8), g("f16", T, 8))
    yield "select of other ranks", lambda g: ew.Select(g("bool", 8), g("f32", T, 8), g("f32", T, 8))


def shapes() -> Iterator[tuple[str, Question]]:
    for e in (*PLAIN, *STORED):
        yield f"shuffle {e}", lambda g, e=e: Shuffle(g(e, T, 8), (T, 2, 4), second=(1, 0, 2))
        yield f"slice {e}", lambda g, e=e: Slice(g(e, T, 8), (0, 2), (T, 4))
        yield f"join {e}", lambda g, e=e: Concatenation((g(e, T, 8), g(e, T, 4)), 1)
    for e in PLAIN:
        yield f"pad {e}", lambda g, e=e: Slice(g(e, T, 8), (-2, -1), (T + 3, 10), mode="fill", fill=1)
    for mode in ("clamp", "wrap", "reflect"):
        yield mode, lambda g, m=mode: Slice(g("f32", T, 8), (-2, -1), (T + 3, 10), mode=m)
    yield "two symbols joined", lambda g: Shuffle(g("f32", B, N, 8), (B * N, 8))
    yield "two symbols moved", lambda g: (g("i32", N), Shuffle(g("f32", B, N, 8), (N, 8, B)))[1]
    yield (
        "dims that are worked out",
        lambda g: (g("i32", B), Shuffle(g("f32", B * 2, T, 8), (B, T * 2, 8)))[1],
    )
    yield "flattened", lambda g: Shuffle(g("f32", T, 8), (T * 8,))
    yield "other entries", lambda g: Shuffle(g("f32", T, 8), (T, 7))
    yield "reversed", lambda g: Slice(g("f32", T, 8), (T - 1, 7), (T, 4), (-1, -2))
    yield "repeated", lambda g: Slice(g("f32", T, 1), (0, 0), (T, 5), (1, 0))
    yield "beyond the end", lambda g: Slice(g("f32", T, 8), (0, 4), (T, 5))
    yield "before the start", lambda g: Slice(g("f32", T, 8), (0, -1), (T, 5))
    yield "joined along a symbol", lambda g: Concatenation((g("f32", T, 8), g("f32", S, 8)), 0)
    yield "joined, but of other dims", lambda g: Concatenation((g("f32", T, 8), g("f32", T, 7)), 0)
    for e in PLAIN:
        if e in ("f32", "i32", "i64"):
            yield f"a ramp of {e}", lambda g, e=e: (g(e, T), Linspace(ELEMS[e], (T, 4), 0, (1, 2)))[1]
    yield "dims as numbers", lambda g: (g("i32", T), DimValues((T, T * 8 - 1, 3)))[1]


def indexed() -> Iterator[tuple[str, Question]]:
    for e in (*PLAIN, *STORED):
        yield f"gather {e}", lambda g, e=e: Gather(g(e, T, 8), g("i32", B, N))
        yield f"gather {e} by entry", lambda g, e=e: GatherElements(g(e, T, 8), g("i32", T, 3), 1)
        yield f"gather {e} by slice", lambda g, e=e: GatherNd(g(e, T, 8), g("i32", B, 2))
        yield (
            f"scatter {e} by entry",
            lambda g, e=e: ScatterElements(g(e, T, 8), g("i32", T, 3), g(e, T, 3), 1),
        )
        yield f"scatter {e} by slice", lambda g, e=e: ScatterNd(g(e, T, 8), g("i32", B, 1), g(e, B, 8))
        yield f"one-hot {e}", lambda g, e=e: OneHot(g("i32", T), g(e, 2), 5)
    for e in ("i64", "f32"):
        yield f"gather by {e}", lambda g, e=e: Gather(g("f32", T, 8), g(e, B, N), 1)
        yield f"scatter by {e}", lambda g, e=e: ScatterNd(g("f32", T, 8), g(e, B, 1), g("f32", B, 8))
    yield "gather in a batch", lambda g: Gather(g("f32", B, 8, 4), g("i32", B, N), 1, batch=1)
    yield "gather the batch itself", lambda g: Gather(g("f32", B, 8, 4), g("i32", B, N), 0, batch=1)
    yield "gather one", lambda g: Gather(g("f32", T, 8), g("i32"), 1)
    yield "an index too deep", lambda g: GatherNd(g("f32", T, 8), g("i32", B, 3))
    yield "updates that do not fit", lambda g: ScatterNd(g("f32", T, 8), g("i32", B, 1), g("f32", B, 7))
    yield "one-hot in front", lambda g: OneHot(g("i32", T), g("f32", 2), 5, 0)
    yield "one-hot of three values", lambda g: OneHot(g("i32", T), g("f32", 3), 5)


def reduced() -> Iterator[tuple[str, Question]]:
    for e in PLAIN:
        for op in ("sum", "prod", "max", "min", "avg"):
            yield f"{op} of {e}", lambda g, e=e, op=op: Reduce(op, g(e, T, 8), (1,), keep=False)
        yield f"softmax of {e}", lambda g, e=e: Softmax(g(e, T, 8))
        yield f"topk of {e}", lambda g, e=e: TopK("max", g(e, T, 8), 3)
        yield f"running sum of {e}", lambda g, e=e: CumulativeSum(g(e, T, 8), 0, True, True)
        yield f"product of {e}", lambda g, e=e: MatrixMultiply(g(e, T, 8), g(e, 4, 8), transpose_b=True)
        yield f"einsum of {e}", lambda g, e=e: Einsum("tk,nk->tn", (g(e, T, 8), g(e, 4, 8)))
        yield f"norm of {e}", lambda g, e=e: Normalization(g(e, T, 8), g(e, 1, 8), g(e, 1, 8), (1,))
    yield "softmax of a row", lambda g: Softmax(g("f32", 9))
    yield "topk of a row", lambda g: TopK("max", g("f32", 9), 2)
    yield "topk of 3841", lambda g: TopK("max", g("f32", T, 5000), 3841)
    yield "topk of too many", lambda g: TopK("max", g("f32", T, 5), 6)
    yield "the smallest", lambda g: TopK("min", g("f32", T, 5), 2, 0)
    yield "reduced to nothing", lambda g: Reduce("sum", g("f32", T, 8), (0, 1), keep=False)
    products: list[tuple[tuple[Dim, ...], tuple[Dim, ...]]] = [
        *[((T, 8), (8,)), ((T, 2, 8), (8, 4)), ((T, 2, 8), (1, 8, 4)), ((2, T, 8), (2, 8, 4))],
        *[((T, 8), (7, 4)), ((2, T, 8), (3, 8, 4)), ((T, 1, 8), (8, 4, 8))],
    ]
    for a, b in products:
        yield f"product of {a} and {b}", lambda g, a=a, b=b: MatrixMultiply(g("bf16", *a), g("bf16", *b))
    equations: list[tuple[str, list[tuple[Dim, ...]]]] = [
        *[("ij->ji", [(T, 8)]), ("ij->", [(T, 8)]), ("ii->i", [(8, 8)]), ("...i,i->...", [(T, 8), (8,)])],
        *[("ij,jk,kl->il", [(T, 8), (8, 4), (4, 2)]), ("bhd,hdk->bhk", [(T, 4, 8), (4, 8, 16)])],
        *[("Ab,bc->Ac", [(T, 8), (8, 4)]), ("ij,ij->ij", [(T, 8), (1, 8)])],
    ]
    for text, dims in equations:
        yield (
            f"einsum {text} of {dims}",
            lambda g, text=text, dims=dims: Einsum(text, tuple(g("f32", *d) for d in dims)),
        )
    norms: list[tuple[str, tuple[Dim, ...], tuple[Dim, ...], tuple[int, ...], int]] = [
        ("of a last dim", (T, 4, 8), (1, 1, 8), (2,), 1),
        ("of groups", (T, 8, 4), (1, 8, 1), (2,), 2),
        ("of groups that do not divide", (T, 8, 4), (1, 8, 1), (2,), 3),
        ("with a scale of another rank", (T, 8), (8,), (1,), 1),
    ]
    for name, x, scale, axes, groups in norms:
        yield (
            f"norm {name}",
            lambda g, x=x, s=scale, a=axes, n=groups: Normalization(
                g("f32", *x), g("f32", *s), g("f32", *s), a, groups=n
            ),
        )


def rotary() -> Iterator[tuple[str, Question]]:
    def turn(
        g: Given,
        x: tuple[Dim, ...],
        angles: tuple[Dim, ...],
        at: tuple[Dim, ...] | None = None,
        **how: bool | int,
    ) -> RotaryEmbedding:
        given = g("bf16", *x), g("bf16", *angles), g("bf16", *angles), g("i32", *at) if at else None
        return RotaryEmbedding(*given, **how)  # type: ignore[arg-type]

    yield "rows", lambda g: turn(g, (T, 4, 1, 8), (T, 1, 4))
    yield "neighbours", lambda g: turn(g, (T, 4, 1, 8), (T, 1, 4), interleaved=True)
    yield "some features", lambda g: turn(g, (T, 4, 1, 8), (T, 1, 3), dim=6)
    yield "by position", lambda g: turn(g, (B, 4, N, 8), (32, 4), (B, N))
    yield "three dims", lambda g: turn(g, (T, 4, 8), (T, 4))
    yield "angles of other dims", lambda g: turn(g, (T, 4, 1, 8), (T, 1, 8))
    yield "angles of other tokens", lambda g: turn(g, (T, 4, 1, 8), (1, 1, 4))
    yield "an odd head", lambda g: turn(g, (T, 4, 1, 7), (T, 1, 3))


def caches() -> Iterator[tuple[str, Question]]:
    def update(
        g: Given,
        elem: str = "bf16",
        cache: tuple[Dim, ...] = (B, 2, 32, 16),
        new: tuple[Dim, ...] = (B, 2, N, 16),
        past: tuple[Dim, ...] = (B,),
        starts: tuple[Dim, ...] | None = None,
    ) -> KVCacheUpdate:
        given = g(elem, *cache), g(elem, *new), g("i32", *past), g("i32", *starts) if starts else None
        return KVCacheUpdate(*given)

    for e in ("f32", "f16", "bf16", "i8", "f8e4m3"):
        yield f"cache of {e}", lambda g, e=e: update(g, e)
    yield "packed rows", lambda g: update(g, new=(T, 2, 16), starts=(B + 1,))
    yield "a cache whose length is not known", lambda g: update(g, cache=(B, 2, T, 16))
    yield "other heads", lambda g: update(g, new=(B, 3, N, 16))
    yield "other slots", lambda g: update(g, cache=(2, 2, 32, 16), new=(3, 2, N, 16), past=(2,))
    yield "more than it holds", lambda g: update(g, new=(B, 2, 33, 16))
    yield "a past of two dims", lambda g: update(g, past=(B, 1))


def attention() -> Iterator[tuple[str, Question]]:
    def attend(
        g: Given,
        elem: str = "bf16",
        heads: tuple[int, int] = (8, 2),
        dim: int = 64,
        tokens: Dim = N,
        mask: str = "",
        mask_dims: tuple[Dim, ...] = (B, 1, N, 128),
        **how: bool | str,
    ) -> Attention:
        kv = (B, heads[1], 128, dim)
        q, k, v = g(elem, B, heads[0], tokens, dim), g(elem, *kv), g(elem, *kv)
        seen = g(mask, *mask_dims) if mask else None
        return Attention(q, k, v, seen, g("i32", B), **how)  # type: ignore[arg-type]

    for heads in ((8, 8), (8, 1), (6, 2), (14, 2), (71, 1), (128, 8), (8, 3), (2, 8)):
        yield (
            f"{heads[0]} heads over {heads[1]}",
            lambda g, h=heads: attend(g, heads=h, causal="lower_right"),
        )
    for dim in (16, 40, 64, 80, 128, 192, 256):
        for e in ("f16", "bf16"):
            for tokens in (1, N):
                yield (
                    f"heads of {dim} {e}, {tokens} tokens",
                    lambda g, d=dim, e=e, n=tokens: attend(g, e, dim=d, tokens=n, causal="lower_right"),
                )
    for dim in (8, 264, 512, 576):
        yield (
            f"heads of {dim} as several kernels",
            lambda g, d=dim: attend(g, dim=d, causal="lower_right", decomposable=True),
        )
    yield "f32 as several kernels", lambda g: attend(g, "f32", causal="lower_right", decomposable=True)
    yield "f32, one token", lambda g: attend(g, "f32", tokens=1, causal="lower_right")
    for kind in ("none", "upper_left", "lower_right"):
        yield f"causal {kind}", lambda g, kind=kind: attend(g, causal=kind)
    for mask in ("bool", "bf16", "f32", "i32"):
        yield f"mask of {mask}", lambda g, m=mask: attend(g, mask=m)
    for dims in ((1, 1, N, 128), (1, 8, N, 128), (B, 8, N, 128), (B, 2, N, 128), (N, 128)):
        yield f"mask {dims}", lambda g, d=dims: attend(g, mask="bool", mask_dims=d)
    yield "a mask and causal", lambda g: attend(g, mask="bool", causal="lower_right")
    yield (
        "values of other dims than keys",
        lambda g: Attention(g("bf16", B, 8, N, 64), g("bf16", B, 2, 128, 64), g("bf16", B, 2, 128, 32)),
    )
    yield (
        "keys of other dims than queries",
        lambda g: Attention(g("bf16", B, 8, N, 64), g("bf16", B, 2, 128, 32), g("bf16", B, 2, 128, 32)),
    )


def quantized() -> Iterator[tuple[str, Question]]:
    scales: list[tuple[tuple[int, ...], int | None]] = [
        *[((), None), ((64,), 0), ((128,), 1), ((64, 4), None), ((64, 1), None), ((1, 128), None)],
        *[((2, 128), None), ((4, 8), None), ((3, 128), None), ((64,), 1)],
    ]
    for e in ("i8", "i4", "f8e4m3", "f4e2m1"):
        for dims, axis in scales:
            yield (
                f"{e} by scales {dims}, axis {axis}",
                lambda g, e=e, d=dims, a=axis: Dequantize(
                    g.weight(e, 64, 128), g.weight("bf16", *d), ELEMS["bf16"], a
                ),
            )
    for e in ("i8", "f8e4m3"):
        yield f"to {e}", lambda g, e=e: Quantize(g("bf16", T, 128), g.weight("bf16"), ELEMS[e])
        yield (
            f"to {e}, a scale a row that is found on the way",
            lambda g, e=e: Quantize(g("bf16", T, 128), g("bf16", T, 1), ELEMS[e]),
        )
    for k in (128, 120):
        yield (
            f"NVFP4 of {k}",
            lambda g, k=k: DynamicQuantize(g("bf16", T, k), g.number("f32", 0.01), ELEMS["f4e2m1"]),
        )
        yield f"MXFP8 of {k}", lambda g, k=k: DynamicQuantize(g("bf16", T, k), None, ELEMS["f8e4m3"])


def collectives() -> Iterator[tuple[str, Question]]:
    yield "all_reduce", lambda g: DistCollective("all_reduce", g("bf16", T, 64), (0, 1), "sum")
    yield "all_gather", lambda g: DistCollective("all_gather", g("bf16", T, 64), (0, 1))
    yield "reduce_scatter", lambda g: DistCollective("reduce_scatter", g("bf16", 8, 64), (0, 1), "sum")


QUESTIONS = {
    f"{kind.__name__}: {name}": question
    for kind in (*(elementwise, shapes, indexed, reduced, rotary, caches, attention, quantized, collectives),)
    for name, question in kind()
}
