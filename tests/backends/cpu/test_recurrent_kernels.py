"""Recurrent kernels against the bodies of their ops: states of other sequences, slots and chunks included."""

import numpy as np
import pytest
import torch
from torch import Tensor

from irloom.backends.cpu.memory import States
from irloom.backends.cpu.native import Kernels
from irloom.backends.cpu.recurrent import KERNELS, Recurrences
from irloom.backends.cpu.step import Rows, Step
from irloom.ir.ops import OPS
from irloom.ir.plan import Pool
from irloom.ir.seqs import Seqs, StateCache
from irloom.runtime.core import Batch

EVERY, SLOTS = 16, 12
# New tokens, tokens before, slot before, slot after: in place, from a snapshot to another slot, from nothing.
SEQUENCES = [(3, 5, 2, 2), (1, 32, 7, 4), (9, 0, -1, 9), (16, 16, 7, 0), (1, 15, 11, 11)]
T = sum(n for n, *_ in SEQUENCES)


def normal(seed: int, *dims: int) -> Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed))


def strided(seed: int, *dims: int) -> Tensor:
    """Rows further apart than they are long."""
    width = int(np.prod(dims))
    return normal(seed, T, width + 5)[:, 2 : 2 + width].unflatten(1, dims)


def operands(c: int, heads: int, k: int, v: int) -> dict[str, tuple[list[Tensor], list[int]]]:
    """By op: its operands but ``seqs`` and states (what is optional last), and the dims of a state."""
    groups = heads // 2 or 1
    x, slow = strided(1, c), -strided(2, c).abs()
    ssm = [strided(3, c).abs(), -normal(4, c, k).abs(), strided(5, k), strided(6, k)]
    ssd = [strided(8, heads).abs(), -normal(9, heads).abs(), strided(10, groups, k), strided(11, groups, k)]
    q, key, value = strided(12, heads, k) / k, strided(13, heads, k) / k, strided(14, heads, v)
    return {
        "causal_conv": ([x, normal(15, c, 4), normal(16, c)], [c, 3]),
        "token_shift": ([x], [c]),
        "linear_scan": ([x, slow.exp()], [c]),
        "selective_scan": ([x, *ssm], [c, k]),
        "ssd_scan": ([strided(7, heads, v), *ssd], [heads, v, k]),
        "gated_delta": (
            [q, key, value, -strided(17, heads, 1).abs(), strided(18, heads).sigmoid()],
            [heads, k, v],
        ),
        "gated_linear_attention": ([q, key, value, -strided(19, heads, k).abs()], [heads, k, v]),
        "wkv": ([x, strided(20, c), -normal(21, c).abs(), normal(22, c)], [3, c]),
    }


def batch(sequences: list[tuple[int, ...]]) -> Batch:
    """Only what says which tokens are whose; each sequence has the two slots it needs."""
    counts = [n for n, *_ in sequences]
    seqs = Seqs.of(counts, [past for _, past, *_ in sequences])
    table = np.full((len(sequences), 4), -1, np.int32)
    for row, (n, past, before, after) in zip(table, sequences, strict=True):
        if past:
            row[(past - 1) // EVERY] = before
        row[(past + n - 1) // EVERY] = after
    arrays = (seqs.positions.numpy(), seqs.starts.numpy(), seqs.context.numpy())
    return Batch(np.zeros(sum(counts), np.int32), *arrays, (table,), (None,) * len(sequences))


def run(
    kernels: Kernels, name: str, given: list[Tensor], cache: Tensor, sequences: list[tuple[int, ...]]
) -> Tensor:
    """The kernel on some rows; ``cache`` is renewed."""
    step = Step([Pool("state", 2, EVERY, 0, SLOTS, cut=True)], T, 8, 4 * EVERY)
    step.load(batch(sequences))
    states = States(StateCache(cache, EVERY, in_place=True), step.pools["state"])

    def place(x: Tensor, own: bool) -> Rows | Tensor:
        return Rows(x, (step.tokens_now, *x.shape[1:]), 0, x.stride(0)) if own else x

    out = torch.full(
        (step.tokens_now.now, *(given[2] if name.startswith("gated") else given[0]).shape[1:]), 7.0
    )
    required = len(given) - (name == "causal_conv")
    args = [place(x, own) for x, own in zip(given, by_token(name), strict=True)]
    made = Rows(out, (step.tokens_now, *out.shape[1:]))
    call = getattr(Recurrences(kernels.raw, step), f"carried_{name}")
    call(*args[:required], states, *args[required:], made)
    return out


def by_token(name: str) -> list[bool]:
    """Which operands but ``seqs`` have a row per token."""
    ins = OPS[name].signature.text.split("->")[0].split(",")
    return [term.split()[0] == "t" for term in ins if "%s" not in term]


def chosen(name: str, given: list[Tensor], rows: slice) -> list[Tensor]:
    """The same operands with some of the tokens only."""
    return [x[rows] if own else x for x, own in zip(given, by_token(name), strict=True)]


@pytest.mark.parametrize(("c", "heads", "k", "v"), [(5, 1, 3, 2), (130, 4, 16, 24), (64, 6, 40, 64)])
@pytest.mark.parametrize("name", [name.removeprefix("carried_") for name in KERNELS])
def test_results_and_states_are_those_of_the_body(kernels, name, c, heads, k, v):
    given, dims = operands(c, heads, k, v)[name]
    cache = normal(30, SLOTS, *dims)
    seqs = Seqs.of([n for n, *_ in SEQUENCES], [past for _, past, *_ in SEQUENCES])
    seqs.tables["state"] = torch.from_numpy(batch(SEQUENCES).tables[0])
    required = len(given) - (name == "causal_conv")
    want, kept = OPS[f"carried_{name}"].reference(
        *given[:required], seqs, StateCache(cache, EVERY), *given[required:]
    )
    renewed = cache.clone()
    got = run(kernels, name, given, renewed, SEQUENCES)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(renewed, kept.states, rtol=2e-5, atol=2e-5)
    untouched = [1, 3, 5, 6, 7, 8, 10]
    assert torch.equal(renewed[untouched], cache[untouched]), "a snapshot stays as it is"


@pytest.mark.parametrize("name", [name.removeprefix("carried_") for name in KERNELS])
def test_bits_do_not_depend_on_chunks_or_company(kernels, name):
    """The fourth sequence alone, 16 tokens at once, or 5 and 11 in two steps."""
    given, dims = operands(70, 4, 16, 24)[name]
    cache = normal(31, SLOTS, *dims)
    together, apart = cache.clone(), cache.clone()
    whole = run(kernels, name, given, together, SEQUENCES)[13:29]
    first = run(kernels, name, chosen(name, given, slice(13, 18)), apart, [(5, 16, 7, 0)])
    second = run(kernels, name, chosen(name, given, slice(18, 29)), apart, [(11, 21, 0, 0)])
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(apart[0], together[0])
