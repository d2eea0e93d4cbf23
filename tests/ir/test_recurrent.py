"""Recurrent ops: whatever the chunks and whoever else is in the batch, the same as in one pass."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from irloom.ir import ops
from irloom.ir.elem import elem_of
from irloom.ir.errors import IRError
from irloom.ir.op import OPS, Op
from irloom.ir.parse import parse
from irloom.ir.recurrent import recurrent
from irloom.ir.seqs import Seqs, StateCache
from irloom.ir.types import Type

RECURRENT = [op for op in OPS if op.carried is not None]
LENGTHS, EVERY = (7, 5), 3
STEPS = [(2, 1), (1, 2), (3, 0), (0, 1), (1, 1)]
"""Tokens that each of two sequences brings in each step."""

TABLE = torch.tensor([[4, 1, 6], [0, 5, 2]], dtype=torch.int32)


def operands(op: Op) -> list[Any]:
    """Per-token operands have as many rows as there are tokens; decays are at most 1."""
    g = torch.Generator().manual_seed(0)
    t = sum(LENGTHS)

    def normal(*dims: int) -> torch.Tensor:
        return torch.randn(*dims, generator=g)

    def below(*dims: int) -> torch.Tensor:
        return -torch.rand(*dims, generator=g)

    keys = [normal(t, 4, 5), F.normalize(normal(t, 4, 5), dim=-1), normal(t, 4, 3)]
    return {
        "causal_conv": [normal(t, 6), normal(6, 4), None, normal(6)],
        "token_shift": [normal(t, 6)],
        "linear_scan": [normal(t, 6), -below(t, 6)],
        "selective_scan": [normal(t, 6), -below(t, 6), below(6, 3), normal(t, 3), normal(t, 3)],
        "ssd_scan": [normal(t, 4, 5), -below(t, 4), below(4), normal(t, 2, 3), normal(t, 2, 3)],
        "gated_delta": [*keys, below(t, 4, 1), -below(t, 4)],
        "gated_linear_attention": [*keys, below(t, 4, 5)],
        "mlstm": [*keys, normal(t, 4) * 10, below(t, 4)],
        "block_pool": [normal(t, 2, 4), normal(t, 2, 4), normal(3, 2, 4), Seqs.of(LENGTHS).positions],
        "wkv": [normal(t, 6) * 30, normal(t, 6), below(6), normal(6)],
    }[op.name]


def twin(op: Op) -> Op:
    assert op.carried is not None
    return op.carried


def at_seqs(op: Op, given: list[Any], *more: Any) -> list[Any]:
    """The operands with ``more`` where ``seqs`` stands."""
    at = op.operands.index("seqs")
    return [*given[:at], *more, *[x for x in given[at:] if x is not None]]


@pytest.mark.parametrize("op", RECURRENT, ids=lambda op: op.name)
def test_chunks_mixed_with_those_of_others_continue_where_they_ended(op: Op):
    """States move to another slot every three tokens; slots that nobody wrote are poisoned."""
    given = operands(op)
    want = op(*at_seqs(op, given, Seqs.of(LENGTHS)))
    types = [Type(elem_of(x.dtype), tuple(x.shape)) for x in given if x is not None]
    state = op.hooks["state"](types, {})
    cache = StateCache(torch.full((7, *state.dims), torch.nan), EVERY)
    rows: list[list[torch.Tensor]] = [[], []]
    done = [0, 0]
    for step in STEPS:
        now = [s for s in (0, 1) if step[s]]
        tokens = torch.cat([torch.arange(done[s], done[s] + step[s]) + s * LENGTHS[0] for s in now])
        seqs = Seqs.of([step[s] for s in now], [done[s] for s in now], {"state": TABLE[now]})
        part = [x[tokens] if x is not None and len(x) == sum(LENGTHS) else x for x in given]
        y, cache = twin(op)(*at_seqs(op, part, seqs, cache))
        for s, own in zip(now, y.split([step[s] for s in now]), strict=True):
            rows[s].append(own)
            done[s] += step[s]
    assert tuple(done) == LENGTHS
    torch.testing.assert_close(torch.cat([*rows[0], *rows[1]]), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", RECURRENT, ids=lambda op: op.name)
def test_a_full_page_stays_as_a_snapshot(op: Op):
    """Of three and one tokens, the slot of the first three is left as it was."""
    given = operands(op)
    types = [Type(elem_of(x.dtype), tuple(x.shape)) for x in given if x is not None]
    state = op.hooks["state"](types, {})
    cache = StateCache.empty(3, state.dims, torch.float32, EVERY)
    table = {"state": TABLE.new_tensor([[2, 0]])}

    def some(start: int, stop: int) -> list[Any]:
        return [x[start:stop] if x is not None and len(x) == sum(LENGTHS) else x for x in given]

    _, after = twin(op)(*at_seqs(op, some(0, 3), Seqs.of([3], tables=table), cache))
    _, later = twin(op)(*at_seqs(op, some(3, 4), Seqs.of([1], [3], table), after))
    assert torch.equal(after.states[2], later.states[2])
    assert not torch.equal(later.states[0], later.states[2])
    assert not cache.states.any() and not later.states[1].any()


def test_a_convolution_is_torchs():
    x, w, _, b = operands(ops.causal_conv)
    got = ops.causal_conv(x, w, Seqs.of(LENGTHS), b)
    alone = [F.conv1d(F.pad(part.T[None], (3, 0)), w[:, None], b, groups=6)[0].T for part in x.split(LENGTHS)]
    torch.testing.assert_close(got, torch.cat(alone))


def test_without_decay_the_delta_rule_replaces_what_a_key_maps_to():
    """With rate 1 and one-hot keys the state is a table, and reading a key gives its last value."""
    keys = F.one_hot(torch.tensor([0, 1, 0, 2]), 3).float()[:, None]
    values = torch.arange(8.0).view(4, 1, 2)
    ones = torch.ones(4, 1)
    got = ops.gated_delta(keys[:, :, [0, 1, 2]], keys, values, torch.zeros(4, 1, 1), ones, Seqs.of([4]))
    torch.testing.assert_close(got, values)
    first = torch.zeros(4, 1, 3)
    first[..., 0] = 1
    got = ops.gated_delta(first, keys, values, torch.zeros(4, 1, 1), ones, Seqs.of([4]))
    torch.testing.assert_close(got[:, 0], values[[0, 0, 2, 2], 0])


def test_wkv_is_a_weighted_average():
    k, v, decay, first = operands(ops.wkv)
    got = ops.wkv(k, v, decay, first, Seqs.of(LENGTHS))
    at = 6
    ages = torch.arange(at - 1, -1, -1)[:, None]
    scores = torch.cat([k[:at] + ages * decay, (k[at] + first)[None]]).double()
    want = (scores.softmax(0) * v[: at + 1]).sum(0)
    torch.testing.assert_close(got[at], want.float())


def test_states_of_other_dims_are_refused():
    text = """
def main(x: f32[T, 6], w: f32[6, 4], seqs: seqs[T, S], kv: state[f32, 8][N, 6, 4]):
    y, kv1 = carried_causal_conv(x, w, seqs, kv)
    return y, kv1
"""
    with pytest.raises(IRError, match=r"states are .*\[N, 6, 4\], but those of a sequence are f32\[6, 3\]"):
        parse(text)


def test_what_is_no_state_is_refused():
    text = """
def main(x: f32[T, 6], seqs: seqs[T, S], kv: f32[N, 6]):
    y, kv1 = carried_token_shift(x, seqs, kv)
    return y, kv1
"""
    with pytest.raises(IRError, match="`states` is f32\\[N, 6\\], no cache of states"):
        parse(text)


def test_a_body_makes_two_ops_and_may_have_attributes():
    """What happens to one sequence is all that an op is defined by."""

    @recurrent("t c -> t c", state="c")
    def running_sum(x: torch.Tensor, *, factor: float = 1.0, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The sum of all tokens so far."""
        sums = state + (factor * x).cumsum(0)
        return sums, sums[-1]

    running_sum.state(lambda operands, attrs: Type(elem_of(torch.float32), operands[0].dims[1:]))
    x = torch.arange(4.0)[:, None]
    assert running_sum(x, Seqs.of([3, 1]), factor=2.0)[:, 0].tolist() == [0, 2, 6, 6]
    cache = StateCache(torch.full((1, 1), 5.0), 8)
    y, after = twin(running_sum)(x[:1] + 1, Seqs.of([1], [2], {"state": TABLE.new_zeros(1, 1)}), cache)
    assert (y.item(), after.states.item()) == (6, 6)
    assert twin(running_sum).attrs == {"factor": 1.0}
