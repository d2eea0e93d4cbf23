"""What a token adds to its scores: a bias for each distance, a sink of its own."""

import torch
import torch.nn.functional as F

from irloom.ir import ops
from irloom.ir.seqs import PagedCache, Seqs

TOKENS, HEADS, KV, DIM, REACH = 7, 4, 2, 8, 3


def normal(*dims: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*dims, generator=torch.Generator().manual_seed(seed))


Q, K, V = normal(TOKENS, HEADS, DIM), normal(TOKENS, KV, DIM, seed=1), normal(TOKENS, KV, DIM, seed=2)
BIAS, SINKS = normal(TOKENS, HEADS, REACH, seed=3), normal(TOKENS, HEADS, seed=4)


def test_a_bias_is_added_to_keys_within_its_reach():
    mask = torch.full((HEADS, TOKENS, TOKENS), float("-inf"))
    for t in range(TOKENS):
        for s in range(t + 1):
            mask[:, t, s] = BIAS[t, :, t - s] if t - s < REACH else 0.0
    q, k, v = (x.transpose(0, 1)[None] for x in (Q, K, V))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    got = ops.attention(Q, K, V, Seqs.of([TOKENS]), None, None, None, BIAS, scale=0.3)
    torch.testing.assert_close(got, expected[0].transpose(0, 1))


def test_each_token_may_have_sinks_of_its_own():
    got = ops.attention(Q, K, V, Seqs.of([TOKENS]), SINKS, scale=0.3)
    for t in range(TOKENS):
        shared = ops.attention(Q, K, V, Seqs.of([TOKENS]), SINKS[t], scale=0.3)
        torch.testing.assert_close(got[t], shared[t])


def test_both_hold_for_chunks_from_a_cache():
    seqs = Seqs.of([4, 3])
    whole = ops.attention(Q, K, V, seqs, SINKS, None, None, BIAS, scale=0.3, window=5)
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32)
    cache = PagedCache.empty(4, 2, KV, DIM, torch.float32, "window 5")
    parts: list[torch.Tensor] = []
    for rows, lengths, past in (([0, 1, 2, 4], [3, 1], [0, 0]), ([3, 5, 6], [1, 2], [3, 1])):
        step = Seqs.of(lengths, past, {"window 5": table})
        cache = ops.kv_append(cache, K[rows], V[rows], step)
        got = ops.paged_attention(
            Q[rows], cache, step, SINKS[rows], None, None, BIAS[rows], scale=0.3, window=5
        )
        torch.testing.assert_close(got, whole[rows])
        parts.append(got)
    assert sum(map(len, parts)) == TOKENS
