"""Rotation and appending against their bodies: ragged steps, padding, every form of cache."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.rope import kv_append, rope, rope_append
from irloom.backends.cuda.step import Step
from irloom.ir.ops import OPS
from irloom.ir.seqs import PagedCache, Seqs
from tests.backends.cuda.cross import compiled
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.near import assert_near, normal, poisoned

PAGES, PAGE = 40, 8
FEATURES = [(16, None), (20, 12), (24, 8), (6, 2)]


@dataclass(frozen=True)
class Case:
    """Queries, keys and values of a step that is filled up with two rows and a sequence."""

    step: Step
    seqs: Seqs
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def real(self) -> list[torch.Tensor]:
        """Those of real tokens."""
        return [x[: self.seqs.tokens] for x in (self.q, self.k, self.v)]


def case(steps: list[tuple[int, int]], heads: int, per: int, dim: int, dtype: torch.dtype) -> Case:
    """Sequences that bring so many tokens after so many; what padding holds is no number, or no position."""
    lengths, past = zip(*steps, strict=True)
    width = max(-(-(n + p) // PAGE) for n, p in steps)
    order = torch.randperm(PAGES, generator=torch.Generator().manual_seed(0))
    table = order[: width * len(steps)].view(len(steps), width).int()
    seqs = Seqs.of(lengths, past, {"full": table}).to(DEVICE)
    owner = torch.repeat_interleave(seqs.starts.diff().cpu()).int()
    fill = lambda x, value, n: torch.cat([x.cpu(), torch.full((n, *x.shape[1:]), value)]).int().to(DEVICE)  # noqa: E731
    step = Step(
        fill(seqs.positions, 0, 2), fill(seqs.positions, 99999, 2), fill(owner, -1, 2),
        fill(seqs.starts, seqs.tokens, 1), fill(seqs.context, 0, 1), {"full": fill(table, 99999, 1)},
    )  # fmt: skip
    rows = normal(1, seqs.tokens + 2, (heads * per + 2 * heads) * dim, dtype=dtype)
    rows[seqs.tokens :] = float("nan")
    parts = rows.split([heads * per * dim, heads * dim, heads * dim], 1)
    return Case(step, seqs, *(x.unflatten(1, (-1, dim)) for x in parts))


def cache_of(heads: int, dim: int, dtype: torch.dtype, stride: int = 1) -> PagedCache:
    """A cache in place, with another layer's between its pages."""
    pages = torch.zeros(PAGES, 2, 2, PAGE // stride, heads, dim, dtype=dtype, device=DEVICE)
    return PagedCache(pages[:, 1, 0], pages[:, 1, 1], "full", in_place=True, stride=stride)


STEPS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@settings(max_examples=12, deadline=None)
@given(
    STEPS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(FEATURES),
    st.booleans(),
    st.booleans(),
    DTYPES,
)
def test_all_between_projections_and_attention(
    steps: list[tuple[int, int]],
    heads: int,
    per: int,
    features: tuple[int, int | None],
    interleaved: bool,
    normed: bool,
    dtype: torch.dtype,
) -> None:
    (dim, rotary), weights = features, [None, None]
    c = case(steps, heads, per, dim, dtype)
    cache, out = cache_of(heads, dim, dtype), poisoned(*c.q.shape, dtype=dtype)
    how = {"rotary": rotary, "interleaved": interleaved, "scale": 1.25, "eps": 1e-4 if normed else None}
    if normed:
        weights = [normal(s, dim, dtype=dtype) for s in (2, 3)]
    q, k, v = (x.double() for x in c.real)
    qw, kw = (w if w is None else w.double() for w in weights)
    empty = cache_of(heads, dim, torch.float64)
    want, held = OPS["rope_append"].reference(q, k, v, empty, c.seqs.positions, c.seqs, qw, kw, None, **how)
    rope_append(out, c.q, c.k, c.v, cache, c.step, *weights, **how)
    assert_near(out[: c.seqs.tokens], want)
    assert_near(cache.k, held.k)
    assert torch.equal(cache.v.double(), held.v)


@settings(max_examples=6, deadline=None)
@given(STEPS, st.sampled_from(FEATURES), st.booleans(), DTYPES)
def test_a_rotation_by_given_frequencies(
    steps: list[tuple[int, int]], features: tuple[int, int | None], interleaved: bool, dtype: torch.dtype
) -> None:
    dim, rotary = features
    c, freq = case(steps, 2, 1, dim, dtype), normal(4, (rotary or dim) // 2).abs()
    out = poisoned(*c.q.shape, dtype=dtype)
    rope(out, c.q, c.step.positions, freq, rotary=rotary, interleaved=interleaved)
    want = OPS["rope"].reference(
        c.real[0].double(), c.seqs.positions, freq, rotary=rotary, interleaved=interleaved
    )
    assert_near(out[: c.seqs.tokens], want)


def test_caches_that_keep_some_keys_only_or_less_of_each() -> None:
    """Every fourth token, keys with no values, and fp8, whose largest stands for all that is larger."""
    c = case([(7, 5), (1, 3), (3, 0)], 2, 1, 6, torch.bfloat16)
    some, keys = cache_of(2, 6, torch.bfloat16, stride=4), cache_of(2, 6, torch.float32)
    kv_append(some, c.k, c.v, c.step)
    kv_append(keys, c.k, None, c.step)
    _, k, v = c.real
    assert torch.equal(some.v, cache_of(2, 6, torch.bfloat16, stride=4).append(k, v, c.seqs).v)
    assert torch.equal(keys.k, cache_of(2, 6, torch.float32).append(k, None, c.seqs).k)
    assert not keys.v.any()
    small = cache_of(2, 6, torch.float8_e4m3fn)
    kv_append(small, c.k * 300, c.v, c.step)
    want = cache_of(2, 6, torch.float8_e4m3fn).append((k * 300).clamp(-448, 448), v, c.seqs)
    assert torch.equal(small.k.float(), want.k.float())
    assert torch.equal(small.v.float(), want.v.float())


def test_it_compiles_for_hopper() -> None:
    """Heads are read and written sixteen bytes at a time, and no angle goes through local memory."""
    strides = [f"{n}_{a}" for n in ("out", "q", "k", "v") for a in "th"]
    strides += [f"{n}_{a}" for n in ("keys", "values") for a in "peh"]
    types = dict.fromkeys(("out", "q", "k", "v", "keys", "values", "q_norm", "k_norm"), "*bf16")
    types |= dict.fromkeys(("table", "owner", "positions"), "*i32") | {"freq": "*fp32", "eps": "fp32"}
    types |= {"scale": "fp32", "table_s": "i32", "pages": "i32"} | dict.fromkeys(strides, "i32:16")
    made = compiled(
        "irloom.backends.cuda.kernels.rope_kernels", "move_heads", types,
        {"Q_HEADS": 32, "K_HEADS": 8, "Q_PARTS": 8, "D": 128, "V": 128, "HALF": 64, "INTERLEAVED": False,
         "NORM": True, "PAGE": 64, "STRIDE": 1, "H": 4, "CHAIN": True},
        num_warps=1, launch_pdl=True,
    )  # fmt: skip
    assert made["ptx"].count("st.global.v4") == 6
    assert "local" not in made["ptx"]
