"""Recurrent ops: each is a kernel that goes through the tokens of every sequence with its state in place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import torch

from irloom.backends.cpu.lower import F32, Lowering
from irloom.backends.cpu.memory import States
from irloom.backends.cpu.native import Raw
from irloom.backends.cpu.place import by_rows
from irloom.backends.cpu.program import lowers
from irloom.backends.cpu.step import Rows, Step
from irloom.ir.elem import Cached
from irloom.ir.graph import Arg, Node, Value

Vector = Rows | torch.Tensor


class Recurrences:
    """The kernels as programs call them, named as their ops: operands and states, then the result."""

    def __init__(self, raw: Raw, step: Step) -> None:
        self._raw, self._step = raw, step

    def carried_causal_conv(self, x: Rows, w: Vector, states: States, bias: Vector | None, y: Rows) -> None:
        """Each channel's last tokens, weighted."""
        b = 0 if bias is None else _at(bias)
        taps = states.value.states.shape[2] + 1
        self._raw.causal_conv(*_rows(x), _at(w), b, *_rows(y), x.width, taps, *self._states(states))

    def carried_token_shift(self, x: Rows, states: States, y: Rows) -> None:
        """The token before."""
        self._raw.token_shift(*_rows(x), *_rows(y), x.width, *self._states(states))

    def carried_linear_scan(self, x: Rows, decay: Rows, states: States, y: Rows) -> None:
        """A sum that decays, entry by entry."""
        self._raw.linear_scan(*_rows(x), *_rows(decay), *_rows(y), x.width, *self._states(states))

    def carried_selective_scan(
        self, x: Rows, dt: Rows, a: Vector, b: Rows, c: Rows, states: States, y: Rows
    ) -> None:
        """Mamba."""
        operands = (*_rows(x), *_rows(dt), _at(a), *_rows(b), *_rows(c), *_rows(y))
        self._raw.selective_scan(*operands, x.width, b.width, *self._states(states))

    def carried_ssd_scan(
        self, x: Rows, dt: Rows, a: Vector, b: Rows, c: Rows, states: States, y: Rows
    ) -> None:
        """Mamba-2."""
        operands = (*_rows(x), *_rows(dt), _at(a), *_rows(b), *_rows(c), *_rows(y))
        sizes = (*x.dims[1:], *b.dims[1:])
        self._raw.ssd_scan(*operands, *sizes, *self._states(states))

    def carried_gated_delta(
        self, q: Rows, k: Rows, v: Rows, decay: Rows, beta: Rows, states: States, y: Rows
    ) -> None:
        """The gated delta rule."""
        self._delta(q, k, v, decay, _rows(beta), states, y)

    def carried_gated_linear_attention(
        self, q: Rows, k: Rows, v: Rows, decay: Rows, states: States, y: Rows
    ) -> None:
        """The same without the correction."""
        self._delta(q, k, v, decay, (0, 0), states, y)

    def _delta(
        self, q: Rows, k: Rows, v: Rows, decay: Rows, beta: tuple[int, int], states: States, y: Rows
    ) -> None:
        operands = (*_rows(q), *_rows(k), *_rows(v), *_rows(decay), *beta, *_rows(y))
        sizes = (*k.dims[1:], v.dims[2], decay.dims[2])
        self._raw.gated_delta(*operands, *sizes, *self._states(states))

    def carried_wkv(self, k: Rows, v: Rows, decay: Vector, first: Vector, states: States, y: Rows) -> None:
        """RWKV."""
        operands = (*_rows(k), *_rows(v), _at(decay), _at(first), *_rows(y))
        self._raw.wkv(*operands, k.width, *self._states(states))

    def _states(self, states: States) -> tuple[int, ...]:
        pool, step = states.arrays, self._step
        tables = (step.starts_ptr, step.context_ptr, pool.table_ptr)
        return (states.ptr, *tables, step.seqs_now.now, pool.max_pages, states.every)

    def names(self) -> dict[str, Callable[..., None]]:
        """The calls by name."""
        return {name: getattr(self, name) for name in KERNELS}


KERNELS = tuple(name for name in vars(Recurrences) if name.startswith("carried_"))


def _rows(x: Rows) -> tuple[int, int]:
    return x.ptr, x.stride


def _at(x: Vector) -> int:
    return x.ptr if isinstance(x, Rows) else x.data_ptr()


def recurrence(f: Lowering, n: Node) -> bool:
    """A kernel call, where the states and all operands are f32."""
    given = [a for a, name in zip_longest(n.args, n.op.operands) if name != "seqs"]
    if not all(_fits(f, a) for a in given):
        return False
    f.place(n.results[0])
    operands = [f.weight(a, "vector") if f.is_weight(a) else a for a in given]
    f.call(n.op.name, *operands, n.results[0], loc=n.loc)
    return True


def _fits(f: Lowering, a: Arg) -> bool:
    if not isinstance(a, Value) or f.is_weight(a):
        return True
    if isinstance(a.type.elem, Cached):
        return a.type.elem.elem == F32
    return a.type.elem == F32 and (by_rows(a.type.dims) or _fixed(a))


def _fixed(a: Value) -> bool:
    """Whether an operand is a table that does not depend on tokens."""
    return all(isinstance(d, int) for d in a.type.dims)


for _name in KERNELS:
    lowers(_name)(recurrence)
