"""Recurrent ops: what looks back through a state of fixed size, token after token.

Bodies go through one sequence a token at a time, in f32, and round at the end: they say what a chunked or a
parallel form must give. Each has a twin ``carried_*`` that goes on from a cache of states (``ir.recurrent``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dims import Dim, product
from ..elem import ELEMS
from ..op import Attrs
from ..recurrent import recurrent
from ..signature import Operand
from ..types import Type

F32 = ELEMS["f32"]


def _dims(operands: Sequence[Operand], at: int) -> tuple[Dim, ...]:
    x = operands[at]
    assert isinstance(x, Type)
    return x.dims


@recurrent("t c, c !k, c? -> t c", state="c !j")
def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, state: Tensor
) -> tuple[Tensor, ...]:
    """Each channel's last ``k`` tokens, weighted: ``y[t] = bias + sum_i weight[i] * x[t - k + 1 + i]``.

    What lies before a sequence is 0. The state is the last ``k - 1`` tokens of each channel.
    """
    seen = torch.cat([state.to(x.dtype), x.T], 1)
    y = F.conv1d(seen[None].float(), weight[:, None].float(), None, groups=len(weight))[0].T
    y = y if bias is None else y + bias.float()
    return y.to(x.dtype), seen[:, seen.shape[1] - state.shape[1] :]


@causal_conv.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x, (channels, taps) = operands[0], _dims(operands, 1)
    assert isinstance(x, Type)
    return Type(x.elem, (channels, taps - 1))


@recurrent("t *b -> t *b", state="*b")
def token_shift(x: Tensor, *, state: Tensor) -> tuple[Tensor, ...]:
    """Each token's predecessor in its sequence; zeros for the first. The state is the last token."""
    return torch.cat([state.to(x.dtype)[None], x[:-1]]), x[-1]


@token_shift.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x = operands[0]
    assert isinstance(x, Type)
    return Type(x.elem, x.dims[1:])


@recurrent("t *b, t *b -> t *b", state="*b")
def linear_scan(x: Tensor, decay: Tensor, *, state: Tensor) -> tuple[Tensor, ...]:
    """``h[t] = decay[t] * h[t - 1] + x[t]``, entry by entry (the RG-LRU of Griffin, De et al., 2024)."""
    out: list[Tensor] = []
    for a, b in zip(decay.float(), x.float(), strict=True):
        state = a * state + b
        out.append(state)
    return torch.stack(out).to(x.dtype), state


@linear_scan.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    return Type(F32, _dims(operands, 0)[1:])


@recurrent("t c, t c, c !n, t !n, t !n -> t c", state="c !n")
def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, state: Tensor
) -> tuple[Tensor, ...]:
    """The state space model of Mamba (Gu and Dao, 2023): a diagonal state of ``n`` entries per channel.

    ``h[t] = exp(dt[t] * a) * h[t - 1] + dt[t] * x[t] * b[t]``, ``y[t] = h[t] . c[t]``.
    """
    out: list[Tensor] = []
    a = a.float()
    for u, d, write, read in zip(x.float(), dt.float(), b.float(), c.float(), strict=True):
        state = torch.exp(d[:, None] * a) * state + (d * u)[:, None] * write
        out.append(state @ read)
    return torch.stack(out).to(x.dtype), state


@selective_scan.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    return Type(F32, _dims(operands, 2))


@recurrent("t (g r) !p, t (g r), (g r), t g !n, t g !n -> t (g r) !p", state="(g r) !p !n")
def ssd_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, state: Tensor) -> tuple[Tensor, ...]:
    """The state space model of Mamba-2 (Dao and Gu, 2024): one decay per head, a matrix as state.

    ``h[t] = exp(dt[t] * a) * h[t - 1] + dt[t] * outer(x[t], b[t])``, ``y[t] = h[t] . c[t]``; ``r`` heads
    share ``b`` and ``c``.
    """
    shared = x.shape[1] // b.shape[1]
    b, c = (z.float().repeat_interleave(shared, 1) for z in (b, c))
    out: list[Tensor] = []
    for u, d, write, read in zip(x.float(), dt.float(), b, c, strict=True):
        state = (
            torch.exp(d * a.float())[:, None, None] * state + (d[:, None] * u)[:, :, None] * write[:, None]
        )
        out.append(torch.einsum("hpn,hn->hp", state, read))
    return torch.stack(out).to(x.dtype), state


@ssd_scan.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    return Type(F32, (*_dims(operands, 0)[1:], _dims(operands, 3)[2]))


@recurrent("t h !k, t h !k, t h !v, t h !d, t h -> t h !v", state="h !k !v")
def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, *, state: Tensor
) -> tuple[Tensor, ...]:
    """The gated delta rule (Yang et al., 2024): a matrix that maps keys to values, corrected token by token.

    ``s = exp(decay[t]) * s``, then ``s += outer(k[t], beta[t] * (v[t] - s . k[t]))``, ``y[t] = s . q[t]``.
    ``decay`` has one logarithm per head (``d`` = 1), or one per key feature (Kimi delta attention, ``d`` =
    ``k``).
    """
    out: list[Tensor] = []
    rows = zip(q.float(), k.float(), v.float(), decay.float().exp(), beta.float(), strict=True)
    for query, key, value, keep, rate in rows:
        state = state * keep[:, :, None]
        error = value - torch.einsum("hkv,hk->hv", state, key)
        state = state + key[:, :, None] * (rate[:, None] * error)[:, None]
        out.append(torch.einsum("hkv,hk->hv", state, query))
    return torch.stack(out).to(v.dtype), state


@recurrent("t h !k, t h !k, t h !v, t h !d -> t h !v", state="h !k !v")
def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, state: Tensor
) -> tuple[Tensor, ...]:
    """Linear attention with decay (Yang et al., 2023; lightning attention with a fixed one).

    ``s = exp(decay[t]) * s + outer(k[t], v[t])``, ``y[t] = s . q[t]``; ``decay`` as for ``gated_delta``.
    """
    out: list[Tensor] = []
    for query, key, value, keep in zip(q.float(), k.float(), v.float(), decay.float().exp(), strict=True):
        state = state * keep[:, :, None] + key[:, :, None] * value[:, None]
        out.append(torch.einsum("hkv,hk->hv", state, query))
    return torch.stack(out).to(v.dtype), state


def _key_by_value(operands: Sequence[Operand], attrs: Attrs) -> Type:
    return Type(F32, (*_dims(operands, 1)[1:], _dims(operands, 2)[2]))


gated_delta.state(_key_by_value)
gated_linear_attention.state(_key_by_value)


@recurrent("t c, t c, c, c -> t c", state="!m c")
def wkv(k: Tensor, v: Tensor, decay: Tensor, first: Tensor, *, state: Tensor) -> tuple[Tensor, ...]:
    """The attention of RWKV-4 (Peng et al., 2023): an average of all values so far, weighted by ``exp(k)``.

    Weights fall by ``exp(decay)`` a token (``decay`` < 0); the token's own gets ``exp(first)`` on top. The
    state is the numerator and the denominator of the average over ``exp(m)``, and ``m``, the running maximum.
    """
    k, v, decay, first = k.float(), v.float(), decay.float(), first.float()
    num, den, most = state
    most = torch.where(den > 0, most, -1e38)  # nothing seen yet: below all
    out: list[Tensor] = []
    for key, value in zip(k, v, strict=True):
        top = torch.maximum(most, key + first)
        old, new = torch.exp(most - top), torch.exp(key + first - top)
        out.append((old * num + new * value) / (old * den + new))
        top = torch.maximum(most + decay, key)
        old, new = torch.exp(most + decay - top), torch.exp(key - top)
        num, den, most = old * num + new * value, old * den + new, top
    return torch.stack(out), torch.stack([num, den, most])


@wkv.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    return Type(F32, (3, _dims(operands, 0)[1]))


@recurrent("t h !k, t h !k, t h !v, t h, t h -> t h !v", state="h !k !w")
def mlstm(
    q: Tensor, k: Tensor, v: Tensor, write: Tensor, keep: Tensor, *, eps: float = 1e-6, state: Tensor
) -> tuple[Tensor, ...]:
    """The matrix memory of xLSTM (Beck et al., 2024): linear attention with exponential gates, normalized.

    ``c = exp(keep[t]) * c + exp(write[t]) * outer(k[t], v[t])``, ``n`` the same with 1 for ``v``, and
    ``y[t] = c . q[t] / (max(|n . q[t]|, 1) + eps)``, all over ``exp(m)`` with ``m`` the running maximum of
    the gates. The state is ``c``, then ``n`` as one more value, then ``m`` as another.
    """
    values = v.shape[-1]
    memory, most = state[..., : values + 1], state[:, 0, values + 1]
    out: list[Tensor] = []
    rows = zip(
        q.float(), k.float(), F.pad(v.float(), (0, 1), value=1.0), write.float(), keep.float(), strict=True
    )
    for query, key, value, new, old in rows:
        top = torch.maximum(old + most, new)
        kept, fresh = torch.exp(old + most - top), torch.exp(new - top)
        memory = kept[:, None, None] * memory + fresh[:, None, None] * key[:, :, None] * value[:, None]
        most = top
        read = torch.einsum("hkv,hk->hv", memory, query)
        out.append(read[:, :values] / (torch.maximum(read[:, values].abs(), torch.exp(-most)) + eps)[:, None])
    after = torch.cat([memory, most[:, None, None].expand(*memory.shape[:2], 1)], -1)
    return torch.stack(out).to(v.dtype), after


@mlstm.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    values = _dims(operands, 2)[2]
    return Type(F32, (*_dims(operands, 1)[1:], values + 2))


def _state_flops(per_entry: int, at: int, *more: int):
    """FLOPs of a recurrence that works on each entry of its state for every token."""

    def flops(operands: Sequence[Operand], attrs: Attrs) -> Dim:
        dims = product([*_dims(operands, at), *(_dims(operands, i)[-1] for i in more)])
        return dims * per_entry

    return flops


selective_scan.flops(_state_flops(6, 0, 2))
ssd_scan.flops(_state_flops(5, 0, 3))
gated_delta.flops(_state_flops(7, 1, 2))
gated_linear_attention.flops(_state_flops(5, 1, 2))
mlstm.flops(_state_flops(5, 1, 2))
