"""Recurrent kernels against the bodies of their ops: any lengths, slots, strides and elements, over steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from irloom.backends.cuda.kernels import recurrent_conv, recurrent_matrix, recurrent_scan
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir.ops import OPS
from irloom.ir.seqs import Seqs, StateCache

from .cross import compiled
from .device import DEVICE

EVERY, SLOTS, PADDED = 16, 20, 3
"""Tokens between slots; slots of a cache; sequences, and rows, that a bucket has beyond the real ones."""

KERNELS = {
    name: launch
    for module in (recurrent_conv, recurrent_scan, recurrent_matrix)
    for name, launch in vars(module).items()
    if name.startswith("carried_")
}
MATRICES = {name for name in vars(recurrent_matrix) if name.startswith("carried_")}
NAMES = [name.removeprefix("carried_") for name in KERNELS]


@dataclass(frozen=True)
class Sizes:
    """Channels, heads, features of keys and of values; and whether each of a key's decays on its own."""

    channels: int
    heads: int
    keys: int
    values: int
    by_key: bool = False


SMALL = Sizes(37, 2, 5, 6)
WIDE = Sizes(140, 4, 16, 40)


class Draw:
    """Seeded operands of ``tokens`` rows, which lie further apart than they are long; NaN between them."""

    def __init__(self, tokens: int, seed: int, dtype: torch.dtype) -> None:
        self.tokens, self.dtype = tokens, dtype
        self.random = torch.Generator().manual_seed(seed)

    def weight(self, *dims: int) -> Tensor:
        """A tensor without tokens."""
        return torch.randn(dims, generator=self.random).to(DEVICE, self.dtype)

    def rows(self, *dims: int) -> Tensor:
        """A tensor with a row a token; those of ``PADDED`` tokens behind the real ones are NaN."""
        width = int(torch.tensor(dims).prod())
        room = torch.full((self.tokens + PADDED, width + 5), float("nan"))
        room[: self.tokens, 2 : 2 + width] = torch.randn(self.tokens, width, generator=self.random)
        return room.to(DEVICE, self.dtype)[:, 2 : 2 + width].unflatten(1, dims)


def operands(name: str, n: Sizes, draw: Draw) -> list[Tensor | None]:
    """What the op takes in front of ``seqs``; of a convolution the bias too, which stands behind."""
    c, h, groups = n.channels, n.heads, n.heads // 2
    if name == "causal_conv":
        return [draw.rows(c), draw.weight(c, 4), draw.weight(c)]
    if name == "token_shift":
        return [draw.rows(c)]
    if name == "linear_scan":
        return [draw.rows(c), draw.rows(c).sigmoid_()]
    if name == "selective_scan":
        more = [draw.weight(c, n.keys).abs().neg(), draw.rows(n.keys), draw.rows(n.keys)]
        return [draw.rows(c), draw.rows(c).abs_(), *more]
    if name == "wkv":
        return [draw.rows(c), draw.rows(c), -draw.weight(c).abs(), draw.weight(c)]
    if name == "ssd_scan":
        more = [-draw.weight(h).abs(), draw.rows(groups, n.keys), draw.rows(groups, n.keys)]
        return [draw.rows(h, n.values), draw.rows(h).abs_(), *more]
    q, k, v = draw.rows(h, n.keys), draw.rows(h, n.keys), draw.rows(h, n.values)
    if name == "mlstm":
        return [q, k, v, draw.rows(h), draw.rows(h).abs_().neg_()]
    k /= k.norm(dim=-1, keepdim=True)
    decay = draw.rows(h, n.keys if n.by_key else 1).abs_().neg_()
    return [q, k, v, decay, draw.rows(h).sigmoid_()] if name == "gated_delta" else [q, k, v, decay]


def result_of(name: str, given: list[Tensor | None]) -> Tensor:
    """Of whose form the result is."""
    like = given[2] if name in ("gated_delta", "gated_linear_attention", "mlstm") else given[0]
    assert like is not None
    return torch.full_like(like, float("nan"), memory_format=torch.contiguous_format)


def state_of(name: str, given: list[Tensor | None]) -> list[int]:
    """The dims of a state."""
    from irloom.ir.elem import elem_of
    from irloom.ir.types import Type

    types = [None if x is None else Type(elem_of(x.dtype), tuple(x.shape)) for x in given]
    return [int(str(d)) for d in OPS[name].hooks["state"](types, {}).dims]


@dataclass(frozen=True)
class Chunk:
    """Tokens that a sequence brings, tokens before, slot before, slot after."""

    tokens: int
    past: int
    before: int
    after: int


def table(chunks: list[Chunk]) -> Tensor:
    """The slots of each, -1 where there is none."""
    made = torch.full((len(chunks), 8), -1, dtype=torch.int32)
    for row, c in zip(made, chunks, strict=True):
        if c.past:
            row[(c.past - 1) // EVERY] = c.before
        row[(c.past + c.tokens - 1) // EVERY] = c.after
    return made


def seqs_of(chunks: list[Chunk]) -> Seqs:
    """As the body takes them."""
    return Seqs.of([c.tokens for c in chunks], [c.past for c in chunks], {"state": table(chunks)}).to(DEVICE)


def step_of(chunks: list[Chunk]) -> Step:
    """As kernels take them: in a bucket with rows and sequences to spare."""
    seqs = Seqs.of([c.tokens for c in chunks], [c.past for c in chunks])
    fill = torch.full((PADDED,), -1, dtype=torch.int32)
    owner = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor([c.tokens for c in chunks]))
    starts = torch.cat([seqs.starts, seqs.starts[-1:].expand(PADDED)])
    arrays = {
        "ids": torch.zeros(seqs.tokens + PADDED), "positions": torch.cat([seqs.positions, fill]),
        "owner": torch.cat([owner, fill]), "starts": starts, "context": torch.cat([seqs.context, fill * 0]),
    }  # fmt: skip
    tables = {"state": torch.cat([table(chunks), fill[:, None].expand(-1, 8)])}
    placed = {k: x.int().to(DEVICE) for k, x in arrays.items()}
    decode = all(c.tokens == 1 for c in chunks)
    return Step(**placed, tables={k: x.to(DEVICE) for k, x in tables.items()}, decode=decode)


def run(name: str, given: list[Tensor | None], states: Tensor, chunks: list[Chunk], **attrs: Any) -> Tensor:
    """The kernel's result; ``states`` is renewed."""
    out, cache = result_of(name, given), StateCache(states, EVERY, in_place=True)
    required = len(given) - (name == "causal_conv")
    if f"carried_{name}" in MATRICES:
        attrs["work"] = Workspace(DEVICE)
    KERNELS[f"carried_{name}"](out, *given[:required], cache, step_of(chunks), *given[required:], **attrs)
    return out[: sum(c.tokens for c in chunks)]


def body(
    name: str, given: list[Tensor | None], states: Tensor, chunks: list[Chunk], **attrs: Any
) -> tuple[Tensor, Tensor]:
    """The result and the states that the op's body gives."""
    tokens, required = sum(c.tokens for c in chunks), len(given) - (name == "causal_conv")
    by_token = [
        t.split()[0] == "t" for t in OPS[name].signature.text.split("->")[0].split(",") if "%" not in t
    ]
    real = [x[:tokens] if own and x is not None else x for x, own in zip(given, by_token, strict=True)]
    made, cache = OPS[f"carried_{name}"].reference(
        *real[:required], seqs_of(chunks), StateCache(states, EVERY), *real[required:], **attrs
    )
    return made, cache.states


def check(name: str, sizes: Sizes, chunks: list[Chunk], dtype: torch.dtype = torch.float32, **attrs: Any):
    """Results and states; slots of nobody stay as they are."""
    draw = Draw(sum(c.tokens for c in chunks), 3 * len(chunks) + sizes.channels, dtype)
    given = operands(name, sizes, draw)
    kept = dtype if name in ("causal_conv", "token_shift") else torch.float32
    states = draw.weight(SLOTS, *state_of(name, given)).to(kept)
    want, after = body(name, given, states, chunks, **attrs)
    renewed = states.clone()
    got = run(name, given, renewed, chunks, **attrs)
    near = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(got.float(), want.float(), rtol=near, atol=near * want.abs().max().item())
    torch.testing.assert_close(renewed, after, rtol=near, atol=near * after.abs().max().item())
    others = sorted(set(range(SLOTS)) - {c.after for c in chunks})
    assert torch.equal(renewed[others], states[others]), "a snapshot stays as it is"


@st.composite
def steps(draw: st.DrawFn, longest: int) -> list[Chunk]:
    """Sequences of a step: new or not, in place or from a snapshot that others start from too."""
    made: list[Chunk] = []
    for s in range(draw(st.integers(1, 4))):
        tokens, past = draw(st.integers(1, longest)), draw(st.sampled_from([0, 1, 5, 16, 31, 32]))
        here = past and past % EVERY and (past - 1) // EVERY == (past + tokens - 1) // EVERY
        made.append(Chunk(tokens, past, s if here else 15, s))
    return made


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3, deadline=None)
@given(st.data())
def test_one_token_each(name, data):
    check(name, data.draw(st.sampled_from([SMALL, WIDE])), data.draw(steps(1)))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None)
@given(st.data())
def test_chunks(name, data):
    check(name, SMALL, data.draw(steps(30)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((n, torch.bfloat16) for n in NAMES), ("gated_delta", torch.float16), ("causal_conv", torch.float16)],
)
def test_short_elements(name, dtype):
    tokens = 67 if f"carried_{name}" in MATRICES else 20
    check(name, SMALL, [Chunk(tokens, 16, 15, 3), Chunk(1, 5, 0, 0), Chunk(9, 0, -1, 1)], dtype)


@pytest.mark.parametrize("name", ["gated_delta", "gated_linear_attention"])
def test_each_feature_of_a_key_decays_on_its_own(name):
    check(name, Sizes(8, 2, 5, 6, by_key=True), [Chunk(1, 5, 0, 0), Chunk(20, 16, 15, 3)])


def test_an_activation_follows_a_convolution():
    draw = Draw(9, 0, torch.float32)
    given, chunks = operands("causal_conv", SMALL, draw), [Chunk(9, 0, -1, 1)]
    states = draw.weight(SLOTS, SMALL.channels, 3)
    want = torch.nn.functional.silu(body("causal_conv", given, states, chunks)[0])
    torch.testing.assert_close(run("causal_conv", given, states, chunks, act="silu"), want)


STEPS = [[Chunk(1, 5, 0, 0), Chunk(1, 16, 15, 3)], [Chunk(67, 16, 15, 3), Chunk(1, 5, 0, 0)]]


@pytest.mark.parametrize("chunks", STEPS)
def test_rates_and_what_skips_the_state(chunks):
    """Mamba-2 takes the rate's bias and softplus along, and adds to its results ``skip * x``."""
    tokens = sum(c.tokens for c in chunks)
    draw = Draw(tokens, 5, torch.float32)
    x, rate, *more = operands("ssd_scan", SMALL, draw)
    assert x is not None and rate is not None
    bias, skip = draw.weight(SMALL.heads), draw.weight(SMALL.heads, 1)
    dt = torch.nn.functional.softplus(rate + bias)
    states = draw.weight(SLOTS, *state_of("ssd_scan", [x, dt, *more]))
    want, after = body("ssd_scan", [x, dt, *more], states, chunks)
    got, cache = torch.full_like(x, float("nan")), StateCache(states, EVERY, in_place=True)
    work, step = Workspace(DEVICE), step_of(chunks)
    KERNELS["carried_ssd_scan"](got, x, rate, *more, cache, step, bias, skip, work=work, soft=True)
    torch.testing.assert_close(got[:tokens], want + skip * x[:tokens], rtol=3e-5, atol=3e-5)
    torch.testing.assert_close(states, after, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("chunks", STEPS)
def test_heads_that_share_queries_and_keys_of_any_length(chunks):
    """The delta rule norms queries and keys itself."""
    tokens = sum(c.tokens for c in chunks)
    draw = Draw(tokens, 6, torch.float32)
    q, k = draw.rows(SMALL.heads, SMALL.keys), draw.rows(SMALL.heads, SMALL.keys)
    v, decay, beta = operands("gated_delta", Sizes(8, 2 * SMALL.heads, SMALL.keys, SMALL.values), draw)[2:]
    wide = [OPS["l2_norm"].reference(x, eps=1e-3).repeat_interleave(2, 1) for x in (q, k)]
    given = [wide[0] * 0.3, wide[1], v, decay, beta]
    states = draw.weight(SLOTS, *state_of("gated_delta", given))
    want, after = body("gated_delta", given, states, chunks)
    got, cache = result_of("gated_delta", given), StateCache(states, EVERY, in_place=True)
    work, step = Workspace(DEVICE), step_of(chunks)
    KERNELS["carried_gated_delta"](got, q, k, v, decay, beta, cache, step, work=work, unit=1e-3, scale=0.3)
    torch.testing.assert_close(got[:tokens], want, rtol=3e-5, atol=3e-5)
    torch.testing.assert_close(states, after, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_steps_go_on_where_the_last_ended(name):
    """A prompt in two chunks and then token by token, which is the whole at once."""
    draw = Draw(30, 7, torch.float32)
    given = operands(name, SMALL, draw)
    dims = state_of(name, given)
    by_token = [x is not None and len(x) == 30 + PADDED for x in given]
    whole, _ = body(name, given, torch.zeros(SLOTS, *dims, device=DEVICE), [Chunk(30, 0, -1, 4)])
    states, done = torch.full((SLOTS, *dims), float("nan"), device=DEVICE), []
    for a, b in [(0, 16), (16, 28), (28, 29), (29, 30)]:
        rows = [
            x[a : b + PADDED] if own and x is not None else x for x, own in zip(given, by_token, strict=True)
        ]
        slot = 4 + (b - 1) // EVERY
        done.append(run(name, rows, states, [Chunk(b - a, a, 4 + (a - 1) // EVERY, slot)]))
    torch.testing.assert_close(torch.cat(done), whole, rtol=1e-4, atol=1e-4)


def test_what_the_kernels_compile_to():
    """States go by 16 bytes a thread; products of a chunk go through tensor cores."""
    place = {"states": "*fp32", "starts": "*i32", "context": "*i32", "table": "*i32", "width": "i32"}
    names = [*("out", "q", "k", "v", "log", "weight"), "divisor"]
    strides = [f"{x}_{by}" for x in names for by in ("row", "head")][:-1]
    operands = {"out": "*fp32", "q": "*bf16", "k": "*bf16", "v": "*bf16", "log": "*bf16", "weight": "*bf16"}
    numbers = dict.fromkeys([*strides, "most", "least", "heads"], "i32:16")
    by_head = dict.fromkeys(["rate", "bias", "skip"], "*fp32")
    signature = place | numbers | operands | by_head
    constants = {
        "divisor": None, "K": 128, "V": 64, "SHARED": 80, "HEAD": 64 * 128, "SK": 1, "SV": 128,
        "DELTA": False, "SOFT": True, "UNIT": None, "SCALE": 1.0, "SLOT": 80 * 64 * 128, "EVERY": 256,
        "KP": 128, "BV": 32, "CHAIN": True,
    }  # fmt: skip
    home = "irloom.backends.cuda.kernels.recurrent_"
    tokens = {**constants, "BY_KEY": False}
    made = compiled(f"{home}matrix", "_tokens", signature, tokens, num_warps=4)["ptx"]
    assert made.count("ld.global.v4") >= 8 and made.count("st.global.v4") >= 8
    chunks = {**constants, "solved": None, "ELEM": "tl.bfloat16", "BT": 64}
    made = compiled(f"{home}chunk", "_chunks", signature, chunks, num_warps=4, num_stages=2)
    assert "wgmma" in made["ptx"] and made["shared"] < 228 * 1024


def test_a_convolution_compiles():
    operands = dict.fromkeys(["out", "x", "weight", "bias", "states"], "*bf16")
    arrays = dict.fromkeys(["starts", "context", "table"], "*i32")
    numbers = dict.fromkeys(["width", "seqs", "out_row", "x_row"], "i32:16")
    constants = {"C": 5376, "TAPS": 4, "SLOT": 3 * 5376, "EVERY": 256, "SILU": True, "BC": 128, "CHAIN": True}
    module, signature = "irloom.backends.cuda.kernels.recurrent_conv", operands | arrays | numbers
    assert compiled(module, "_conv", signature, {**constants, "BT": 32}, num_warps=4)["ptx"]


def test_keys_of_a_real_size_in_short_elements():
    """They are brought to length 1 by the kernel, in chunks on tensor cores."""
    sizes, chunks = Sizes(8, 2, 128, 32), [Chunk(90, 16, 15, 3), Chunk(1, 5, 0, 0), Chunk(9, 0, -1, 1)]
    draw = Draw(100, 8, torch.bfloat16)
    q, k, v, decay, beta = operands("gated_delta", sizes, draw)
    assert q is not None and k is not None
    q, k = q * 3, k * 3
    states = draw.weight(SLOTS, 2, 128, 32).float()
    unit = [OPS["l2_norm"].reference(x.float(), eps=1e-3) for x in (q, k)]
    wide = [unit[0] * 0.1, unit[1], *(x.float() for x in (v, decay, beta) if x is not None)]
    want, after = body("gated_delta", list(wide), states, chunks)
    got, cache = result_of("gated_delta", [q, k, v]), StateCache(states, EVERY, in_place=True)
    work, step = Workspace(DEVICE), step_of(chunks)
    KERNELS["carried_gated_delta"](got, q, k, v, decay, beta, cache, step, work=work, unit=1e-3, scale=0.1)
    for made, exact in ((got[:100].float(), want), (states, after)):
        torch.testing.assert_close(made, exact, rtol=2e-2, atol=2e-2 * exact.abs().max().item())
