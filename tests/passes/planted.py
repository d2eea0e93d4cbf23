"""Mistakes planted in real passes, and what bisect says of them: ``python -m tests.passes.planted``.

A mistake is a class's ``replace``, or an op that a pass emits, exchanged for one that does the wrong thing.
Models are tiny configs of library classes with the features that the mistakes are about.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from irloom.bisect import bisect_module, rerun
from irloom.driver import Choice, passes_of
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.trace import trace_config
from irloom.ir import ops
from irloom.ir.elem import ELEMS
from irloom.ir.parse import parse
from irloom.ir.weight_expr import Concat, Scale, Slice
from irloom.passes import (
    absorb_mla,
    algebra,
    fold_weights,
    fuse_mlp,
    fuse_moe,
    fuse_norm,
    fuse_qkv,
    fuse_rope_append,
    kv_cache,
    raise_norm,
    raise_router,
)
from tests.tiny import COMMON

SMALL: dict[str, Any] = {**COMMON, "num_hidden_layers": 2}


SCALED = """
def main(x: f32[T, 8], w: f32[8, 8] = weight("w"), by: f32[8] = weight("by")):
    scaled = mul(w, by)
    y = linear(x, scaled)
    return y
"""


@cache
def program(name: str) -> Any:
    """The trace of a tiny model."""
    import transformers

    if name == "scaled":
        return parse(SCALED)
    heads: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "head_dim"}
    caps: dict[str, Any] = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
    near: dict[str, Any] = {"query_pre_attn_scalar": 4, "sliding_window": 8}
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    widths: dict[str, Any] = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**SMALL),
        "qwen2": lambda: transformers.Qwen2Config(**SMALL),
        "gemma2": lambda: transformers.Gemma2Config(**SMALL, **caps, **near),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SMALL, **experts, norm_topk_prob=True),
        "deepseek": lambda: transformers.DeepseekV2Config(
            **heads, **widths, kv_lora_rank=20, q_lora_rank=None, first_k_dense_replace=2
        ),
    }
    return trace_config(made[name](), TraceOptions(dtype=ELEMS["f32"], check=False))


@dataclass(frozen=True)
class Planted:
    """A mistake: the model that shows it, ``plant`` to put it in, and the pass and rewrite to be named."""

    what: str
    model: str
    of: str
    rewrite: str
    plant: Callable[[pytest.MonkeyPatch], None]


def attends(change: Callable[..., dict[str, Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Let ``kv-cache`` change the attributes of the attentions that it rewrites."""

    def plant(patch):
        real = kv_cache._attend

        def wrong(f, kept, cache):
            after = real(f, kept, cache)
            for n in kept.nodes:
                n.attrs = {**n.attrs, **change(n)}
            return after

        patch.setattr(kv_cache, "_attend", wrong)

    return plant


def replaces(rule: type, wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Let a rule put something else."""
    return lambda patch: patch.setattr(rule, "replace", wrong)


def epsilon(self, x, y, w, eps):
    return ops.add_rms_norm(x, y, w, eps=10 * eps)


def lost_residual(self, x, y, w, eps):
    _, normed = ops.add_rms_norm(x, y, w, eps=eps)
    return x, normed


def swapped(self, gate, up):
    return ops.silu_mul(up, gate)


def uncapped(self, x, c):
    return x


def narrow(self, x, w, eps, groups):
    normed = self.norm(x, w, eps=eps, groups=groups)
    return ops.cast(ops.cast(normed, to=ELEMS["bf16"]), to=x.type.plain)


def wrong_way(self, gate, up, tanh):
    return ops.gelu_mul(gate, up, tanh=not tanh)


def raises(self, x, y, w, eps):
    raise ValueError("no kernel for this width")


def interleaved(patch):
    real = fuse_rope_append.rope_append
    patch.setattr(fuse_rope_append, "rope_append", lambda *a, **k: real(*a, **{**k, "interleaved": True}))


def twice(theta):
    return 2 * theta if isinstance(theta, float) else theta  # a pattern has holes for numbers


def another_base(patch):
    real = fuse_rope_append.rope_append
    patch.setattr(
        fuse_rope_append, "rope_append", lambda *a, **k: real(*a, **{**k, "theta": twice(k["theta"])})
    )


def stale(patch):
    real = kv_cache._attend

    def attend(f, kept, cache):
        return real(f, kept, next(p for p in f.params if p.name.startswith("kv")))

    patch.setattr(kv_cache, "_attend", attend)


def heads_reversed(patch):
    real = kv_cache.kv_append

    def append(cache, k, v, seqs):
        parts = ops.split(k, dim=1, sizes=(1,) * k.type.dims[1])
        return real(cache, ops.concat(*parts[::-1], dim=1), v, seqs)

    patch.setattr(kv_cache, "kv_append", append)


def keys_twice(patch):
    real = kv_cache._page

    def page(f, kept, cache, names, name):
        after = real(f, kept, cache, names, name)
        append = next(n for n in f.nodes if n.results[0] is after)
        append.args[2] = append.args[1]  # keys in the place of values
        return after

    patch.setattr(kv_cache, "_page", page)


def values_of_keys(patch):
    real = fuse_qkv.join

    def join(site, name, parts):
        return real(site, name, [parts[0], parts[2], parts[1]])

    patch.setattr(fuse_qkv, "join", join)


def no_bias(patch):
    patch.setattr(fuse_qkv, "join_biases", lambda site, name, parts: None)


def joined_backwards(patch):
    real = fuse_mlp.join
    patch.setattr(fuse_mlp, "join", lambda site, name, parts: real(site, name, parts[::-1]))


def scale_of_latents(patch):
    real = absorb_mla._attend

    def attend(site, n, found):
        return real(site, replace(n, attrs={**n.attrs, "scale": found.kept**-0.5}), found)

    patch.setattr(absorb_mla, "_attend", attend)


def heads_rolled(patch):
    real = absorb_mla._Up.weight

    def weight(self, site, name, transposed=False):
        rolled = Concat((Slice(self.expr, 0, 1, self.heads), Slice(self.expr, 0, 0, 1)), 0)
        return real(replace(self, expr=rolled) if transposed else self, site, name, transposed)

    patch.setattr(absorb_mla._Up, "weight", weight)


def not_normalized(patch):
    prove = raise_router.prove
    patch.setattr(raise_router, "prove", lambda *a: (form := prove(*a)) and {**form, "normalize": False})


def halved(self, x, index, weights, w1, w2, b1, b2):
    return ops.moe(x, index, ops.mul(weights, 0.5), w1, w2, b1, b2)


def wrong_axis(patch):
    real = fold_weights._times

    def times(x, by, elem):
        made = real(x, by, elem)
        return replace(made, dim=1 - made.dim) if isinstance(made, Scale) else made

    patch.setattr(fold_weights, "_times", times)


def window_short(n):
    return {"window": n.attrs["window"] and n.attrs["window"] - 1}


NORM, GATE, UP = fuse_norm.AddRmsNorm, fuse_mlp.FuseSiluMul, fuse_mlp.FuseGeluMul
EXPERTS, CAP = fuse_moe.FuseSiluExperts, algebra.Softcap
TURN, READS = "RotateAndAppend", "attention: reads"
PLANTED = [
    Planted("an epsilon ten times too large", "llama", "fuse-norm", "AddRmsNorm", replaces(NORM, epsilon)),
    Planted("a lost residual", "llama", "fuse-norm", "AddRmsNorm", replaces(NORM, lost_residual)),
    Planted("gate and up exchanged", "llama", "fuse-mlp", "FuseSiluMul", replaces(GATE, swapped)),
    Planted("gate and up joined backwards", "llama", "fuse-mlp", "JoinGateUp", joined_backwards),
    Planted("gelu in its other form", "gemma2", "fuse-mlp", "FuseGeluMul", replaces(UP, wrong_way)),
    Planted(
        "a softcap of logits lost", "gemma2", "canonicalize", "Softcap", replaces(algebra.Softcap, uncapped)
    ),
    Planted("a softcap of scores lost", "gemma2", "kv-cache", READS, attends(lambda n: {"softcap": None})),
    Planted("a window one short", "gemma2", "kv-cache", "paged[f32, 16, 8]", attends(window_short)),
    Planted("keys of the wrong head", "llama", "kv-cache", READS, heads_reversed),
    Planted("keys in the place of values", "llama", "kv-cache", READS, keys_twice),
    Planted("a cache read before the append", "llama", "kv-cache", READS, stale),
    Planted("neighbours rotated, not halves", "llama", "fuse-rope-append", TURN, interleaved),
    Planted("another base of the rotation", "llama", "fuse-rope-append", TURN, another_base),
    Planted("a bias lost", "qwen2", "fuse-qkv", "as one linear", no_bias),
    Planted("keys and values joined backwards", "qwen2", "fuse-qkv", "as one linear", values_of_keys),
    Planted("the softmax scale of latents", "deepseek", "absorb-mla", "features a token", scale_of_latents),
    Planted("weights of the next head", "deepseek", "absorb-mla", "features a token", heads_rolled),
    Planted("a norm rounded to bf16", "llama", "raise", "Scaled", replaces(raise_norm.Scaled, narrow)),
    Planted("experts not normalized", "qwen3_moe", "raise", "a route by", not_normalized),
    Planted("experts halved", "qwen3_moe", "fuse-moe", "FuseSiluExperts", replaces(EXPERTS, halved)),
    Planted("a scale on the wrong axis", "scaled", "canonicalize", "read with it", wrong_axis),
    Planted("a rule that raises", "llama", "fuse-norm", "AddRmsNorm", replaces(NORM, raises)),
]


@dataclass(frozen=True)
class Told:
    """What bisect said, and whether the reproducer is red with the mistake and green without."""

    of: str
    rewrite: str
    statements: int | None
    red: bool
    green: bool
    seconds: float


def told(bug: Planted, folder: Path) -> Told:
    """Plant a mistake, bisect, run the reproducer, take the mistake out, run it again."""
    start, file = time.perf_counter(), folder / f"{bug.what.replace(' ', '-')}.irloom"
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        found = bisect_module(program(bug.model), passes_of(Choice()), out=file)
        if found is None:
            return Told("-", "-", None, False, False, time.perf_counter() - start)
        red = not rerun(file).ok
    green = rerun(file).ok
    size = found.reduced.statements if found.reduced else None
    return Told(found.culprit.name, found.culprit.place, size, red, green, time.perf_counter() - start)


def main() -> None:
    """The table of what was planted and found."""
    right, start = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for bug in PLANTED:
            t = told(bug, Path(folder))
            ok = t.of == bug.of and bug.rewrite in t.rewrite and t.red and t.green
            right += ok
            size = f"{t.statements or 0:3} statements"
            click.echo(
                f"{'ok ' if ok else 'BAD'} {bug.what:32} {t.of:16} {size} {t.seconds:5.1f} s  {t.rewrite}"
            )
    seconds = time.perf_counter() - start
    click.echo(f"{right} of {len(PLANTED)} found, named, and reproduced in {seconds:.0f} s")


if __name__ == "__main__":
    main()
