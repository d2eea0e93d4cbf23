"""Sparse and compressed attention, against formulas written out, and from caches in steps of any size."""

from typing import Any

import pytest
import torch

from irloom.ir import ops
from irloom.ir.errors import IRError
from irloom.ir.interp import empty_cache
from irloom.ir.op import Op
from irloom.ir.parse import parse
from irloom.ir.seqs import PagedCache, Seqs
from irloom.ir.types import Type

LENGTHS = (9, 6)
STEPS = [(3, 1), (0, 2), (1, 3), (5, 0)]
"""Tokens that each of two sequences brings in each step."""

TABLE = torch.tensor([[3, 1, 7], [0, 5, 2]], dtype=torch.int32)
TABLES = {"full": TABLE, "stride 2": TABLE}


def normal(*dims: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*dims, generator=torch.Generator().manual_seed(seed))


def cache_of(text: str) -> PagedCache:
    t: Type = parse(f"def main(x: {text}):\n    return x\n").main.params[0].type
    cache = empty_cache(t, 8)
    assert isinstance(cache, PagedCache)
    return cache


T = sum(LENGTHS)
Q, K, V = normal(T, 4, 8), normal(T, 2, 8, seed=1), normal(T, 2, 8, seed=2)
ONE, WEIGHT = normal(T, 1, 8, seed=3), normal(T, 4, seed=4)
CASES: dict[str, tuple[Op, Op, list[Any], str, dict[str, Any]]] = {
    "of all keys": (
        ops.sparse_index, ops.paged_sparse_index, [Q, ONE, WEIGHT], "paged[f32, 4](values=0)[P, 1, 8]",
        {"topk": 3},
    ),
    "of blocks, by one key each": (
        ops.sparse_index, ops.paged_sparse_index, [Q, ONE, WEIGHT],
        "paged[f32, 4](values=0, stride=2)[P, 1, 8]", {"topk": 2, "stride": 2},
    ),
    "of blocks, by their best key": (
        ops.block_index, ops.paged_block_index, [Q, ONE], "paged[f32, 4](values=0)[P, 1, 8]",
        {"block": 2, "topk": 2, "local": 1},
    ),
}  # fmt: skip


def in_steps(paged: Any, operands: list[Any], cache: PagedCache, attrs: dict[str, Any]) -> Any:
    """Results of all tokens, each computed in the step that brings it."""
    done, rows = [0, 0], torch.arange(T).split(LENGTHS)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in STEPS:
        now = [s for s in (0, 1) if step[s]]
        tokens = torch.cat([rows[s][done[s] : done[s] + step[s]] for s in now])
        tables = {name: table[now] for name, table in TABLES.items()}
        seqs = Seqs.of([step[s] for s in now], [done[s] for s in now], tables)
        q, k, *rest = (x[tokens] for x in operands)
        cache = cache.append(k, rest.pop(0) if cache.v.shape[-1] else None, seqs)
        made = paged(q, cache, *rest, seqs, **attrs)
        parts.append((tokens, made[0] if isinstance(made, tuple) else made))
        done = [d + n for d, n in zip(done, step, strict=True)]
    assert tuple(done) == LENGTHS
    order = torch.cat([tokens for tokens, _ in parts]).argsort()
    return torch.cat([made for _, made in parts])[order]


@pytest.mark.parametrize("name", CASES)
def test_steps_of_any_size_choose_the_same_keys(name: str):
    plain, paged, operands, cache, attrs = CASES[name]
    want = plain(*operands, Seqs.of(LENGTHS), **attrs)
    assert torch.equal(in_steps(paged, operands, cache_of(cache), attrs), want)


def test_the_best_keys_are_those_of_highest_score():
    got = ops.sparse_index(Q[:9], ONE[:9], WEIGHT[:9], Seqs.of([9]), topk=3)
    for t, chosen in enumerate(got.tolist()):
        score = [(WEIGHT[t] * (Q[t] @ ONE[s, 0]).relu()).sum().item() for s in range(t + 1)]
        want = sorted(range(t + 1), key=lambda s: -score[s])[:3]
        assert chosen == [*want, *[-1] * (3 - len(want))]


def test_a_block_is_as_good_as_its_best_token_and_the_last_come_first():
    got = ops.block_index(Q[:9], ONE[:9], Seqs.of([9]), block=2, topk=2, local=1)
    score = torch.einsum("thd,sd->ths", Q[:9], ONE[:9, 0])[8, 0]
    best = max(range(4), key=lambda b: score[2 * b : 2 * b + 2].max().item())
    assert got[8, 0].tolist() == [4, best]
    assert got[1].tolist() == [[0, -1]] * 4


def test_two_parts_are_joined_by_their_sums():
    """Attention to blocks 0 and 2 and attention to block 1 are attention to all of them."""
    seqs = Seqs.of([6])
    given, sinks = [Q[:6], K[:6], V[:6], seqs], normal(4, seed=5)
    chosen = torch.tensor([[0, 1, 4, 5]]).repeat(6, 1)
    a, of_a = ops.partial_attention(*given, sinks, chosen, scale=0.3)
    b, of_b = ops.partial_attention(*given, None, torch.tensor([[2, 3]]).repeat(6, 1), scale=0.3)
    share = torch.sigmoid(of_a - of_b)[..., None]
    want = ops.attention(*given, sinks, scale=0.3)
    torch.testing.assert_close(share * a + (1 - share) * b, want)
    assert of_b[0].tolist() == [float("-inf")] * 4 and not b[0].any()


def test_a_stride_leaves_the_last_key_of_each():
    got, _ = ops.partial_attention(Q[:7], K[:7], V[:7], Seqs.of([7]), scale=0.3, stride=3)
    lone = ops.attention(Q[[6]], K[[2]], V[[2]], Seqs.of([1]), scale=0.3)
    assert not got[:2].any()
    torch.testing.assert_close(got[2:5], V[2].repeat_interleave(2, 0).expand(3, -1, -1))
    torch.testing.assert_close(lone[0], got[4])


def test_strided_keys_are_read_from_a_cache_of_one_entry_a_stride():
    index = torch.randint(-1, 4, (T, 2), generator=torch.Generator().manual_seed(6))
    attrs: dict[str, Any] = {"scale": 0.3, "stride": 2}
    want, _ = ops.partial_attention(Q, K, V, Seqs.of(LENGTHS), None, index, **attrs)
    cache = cache_of("paged[f32, 4](stride=2)[P, 2, 8]")
    assert cache.k.shape == (8, 2, 2, 8) and cache.page == 4

    def paged(q: torch.Tensor, cache: PagedCache, index: torch.Tensor, seqs: Seqs, **attrs: Any) -> Any:
        return ops.paged_partial_attention(q, cache, seqs, None, index, **attrs)

    got = in_steps(paged, [Q, K, V, index], cache, attrs)
    torch.testing.assert_close(got, want)


def test_blocks_pooled_overlap_the_block_before():
    x, gate, bias = normal(7, 2, 4), normal(7, 2, 4, seed=1), normal(3, 2, 4, seed=2)
    got = ops.block_pool(x, gate, bias, torch.arange(7), Seqs.of([7]))
    scores = torch.cat([gate[:3, 1] + bias[:, 1], gate[3:6, 0] + bias[:, 0]])
    want = (scores.softmax(0) * torch.cat([x[:3, 1], x[3:6, 0]])).sum(0)
    torch.testing.assert_close(got[5], want)
    first = ((gate[:3, 0] + bias[:, 0]).softmax(0) * x[:3, 0]).sum(0)
    torch.testing.assert_close(got[2], first)
    assert not got[[0, 1, 3, 4, 6]].any()


def test_a_page_holds_whole_strides():
    with pytest.raises(IRError, match="a page of 6 tokens has no whole number of strides of 4"):
        cache_of("paged[f32, 6](stride=4)[P, 2, 8]")


def test_keys_are_counted_as_the_cache_keeps_them():
    text = """
def main(q: f32[T, 4, 8], w: f32[T, 4], seqs: seqs[T, S], kv: paged[f32, 4](values=0, stride=2)[P, 1, 8]):
    y = paged_sparse_index(q, kv, w, seqs, topk=2)
    return y
"""
    with pytest.raises(IRError, match="not a cache of the keys that it counts"):
        parse(text)
