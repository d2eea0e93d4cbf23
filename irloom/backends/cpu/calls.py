"""What a program's names call: one method per kernel, which takes rows and weights, passes addresses on."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import torch

from irloom.backends.cpu.elementwise import bind
from irloom.backends.cpu.memory import AnyCache, Cache, States, Turns
from irloom.backends.cpu.native import ACTIVATIONS, SCORES, Raw
from irloom.backends.cpu.pack import Packed
from irloom.backends.cpu.step import Count, Rows, Step
from irloom.ir.elem import ELEMS
from irloom.ir.op import OPS

Vector = torch.Tensor | None


class Calls:
    """The kernels as programs call them. ``T`` and ``S`` of a call are those of the step at hand."""

    def __init__(self, raw: Raw, step: Step) -> None:
        self._raw, self._step = raw, step
        self._tokens, self._seqs = step.tokens_now, step.seqs_now
        self._starts, self._context, self._last = step.starts_ptr, step.context_ptr, step.last_ptr

    def embedding(self, table: Packed, ids: Rows, y: Rows, *, scale: float) -> None:
        """Rows of a packed weight, times ``scale``."""
        self._raw.embedding(table.address, ids.ptr, y.ptr, y.stride, self._tokens.now, scale)

    def linear(self, x: Rows, w: Packed, y: Rows, *, residual: Rows | None) -> None:
        """``y = x @ w.T + bias + residual``, of each head of a row where rows have heads."""
        r, ldr = (0, 0) if residual is None else (residual.ptr, residual.stride)
        for head in range(x.width // x.last):
            a, b = 4 * head * x.last, 4 * head * y.last
            self._raw.linear(
                w.address, x.ptr + a, x.stride, y.ptr + b, y.stride, r and r + b, ldr, x.count.now
            )

    def linear_act(
        self, x: Rows, w: Packed, y: Rows, *,
        residual: Rows | None, act: str, scale: float, softcap: float | None,
    ) -> None:  # fmt: skip
        """``y = residual + softcap(scale * act(x @ w.T + bias))``, of each head of a row as ``linear``."""
        r, ldr = (0, 0) if residual is None else (residual.ptr, residual.stride)
        how = (x.count.now, ACTIVATIONS.index(act), scale, softcap or 0.0)
        for head in range(x.width // x.last):
            a, b = 4 * head * x.last, 4 * head * y.last
            self._raw.linear_act(w.address, x.ptr + a, x.stride, y.ptr + b, y.stride, r and r + b, ldr, *how)

    def expert_linear(self, x: Rows, index: Rows, w: Packed, y: Rows) -> None:
        """``y[t, j] = x[t] @ w[index[t, j]].T + bias``; ``x`` may have a row for each choice."""
        at = w.layout
        self._raw.expert_linear(
            w.address, at.stack, at.each, x.ptr, x.stride, len(x.dims) - 2, index.ptr, index.stride,
            index.width, y.ptr, y.stride, y.count.now,
        )  # fmt: skip

    def head_linear(self, x: Rows, w: Packed, y: Rows) -> None:
        """``y[t, h] = x[t, h] @ w[h].T``."""
        at = w.layout
        self._raw.head_linear(w.address, at.stack, at.each, x.ptr, x.stride, y.ptr, y.stride, y.count.now)

    def moe(self, act: str, x: Rows, index: Rows, weights: Rows, up: Packed, down: Packed, y: Rows) -> None:
        """The gated experts that each token chooses, summed by ``weights``."""
        a, b = up.layout, down.layout
        self._raw.moe(
            ACTIVATIONS.index(act), up.address, a.each, down.address, b.each, a.stack, x.ptr, x.stride,
            index.ptr, index.stride, weights.ptr, weights.stride, index.width, y.ptr, y.stride, y.count.now,
        )  # fmt: skip

    def softmax(self, x: Rows, y: Rows) -> None:
        """Along the last dim of [T, N]."""
        self._raw.softmax(x.ptr, x.stride, y.ptr, y.stride, x.count.now, x.width)

    def sums(self, x: Rows, y: Rows, *, count: int, inner: int, weights: Rows | None, scale: float) -> None:
        """Over ``count`` groups of ``inner`` entries that follow each other, times ``weights`` [T, count]."""
        w, ldw = (0, 0) if weights is None else (weights.ptr, weights.stride)
        sizes = (x.width // (count * inner), count, inner)
        self._raw.sums(x.ptr, x.stride, w, ldw, y.ptr, y.stride, x.count.now, *sizes, scale)

    def gather(self, x: Rows, index: Rows, y: Rows) -> None:
        """Entries of the last dim, of each row or of each part of a row."""
        sizes = (x.width // x.last, x.last, y.last)
        self._raw.gather(x.ptr, x.stride, index.ptr, index.stride, y.ptr, y.stride, x.count.now, *sizes)

    def move(
        self, x: Rows, y: Rows, *, sizes: tuple[int, ...], read: tuple[int, ...], write: tuple[int, ...]
    ) -> None:
        """Entries of each row to other places: three loops of ``sizes``; where each starts, and its steps."""
        from_, to = x.ptr + 4 * read[0], y.ptr + 4 * write[0]
        self._raw.move(from_, x.stride, *read[1:], to, y.stride, *write[1:], x.count.now, *sizes)

    def topk(self, x: Rows, values: Rows, index: Rows) -> None:
        """The largest of each row of [T, N], or of each part of a row, and their places in it."""
        n, k = x.last, values.last
        for at in range(x.width // n):
            to, places = values.ptr + 4 * at * k, index.ptr + 4 * at * k
            self._raw.topk(
                x.ptr + 4 * at * n, x.stride, to, values.stride, places, index.stride, x.count.now, n, k
            )

    def route(
        self,
        score: str,
        x: Rows,
        bias: Vector,
        weights: Rows,
        index: Rows,
        *,
        k: int,
        by_logits: bool,
        groups: int,
        top_groups: int,
        best: int,
        normalize: bool,
        scale: float,
    ) -> None:
        """Which experts each token chooses, and with what weights."""
        self._raw.route(
            x.ptr, x.stride, _at(bias), weights.ptr, weights.stride, index.ptr, index.stride, x.count.now,
            x.last, k, SCORES.index(score), by_logits, groups, top_groups, best, normalize, scale,
        )  # fmt: skip

    def rms_norm(self, x: Rows, w: Vector, y: Rows, *, eps: float, groups: int = 1) -> None:
        """Each row, each head of each row, or each of their groups, to unit root-mean-square."""
        n = x.last // groups
        for at in range(0, x.width, n):
            row, to, weight = x.ptr + 4 * at, y.ptr + 4 * at, _part(w, at % x.last)
            self._raw.rms_norm(row, x.stride, weight, to, y.stride, x.count.now, n, eps)

    def l2_norm(self, x: Rows, y: Rows, *, eps: float) -> None:
        """Each row, or each head of each row, to length 1."""
        n = x.last
        for at in range(0, x.width, n):
            row, to = x.ptr + 4 * at, y.ptr + 4 * at
            self._raw.l2_norm(row, x.stride, to, y.stride, x.count.now, n, eps)

    def add_rms_norm(
        self,
        x: Rows,
        a: Rows,
        r: Rows,
        w: Vector,
        y: Rows | None,
        *,
        eps: float,
        inner: Vector,
        inner_eps: float,
    ) -> None:
        """``r = x + a``, or ``x + rms_norm(a, inner)``; then ``y = rms_norm(r, w)`` unless ``y`` is None.

        Without ``inner`` the inner norm has no weight, and with ``inner_eps`` 0 there is none.
        """
        out, rows = 0 if y is None else y.ptr, x.count.now * (x.width // x.last)  # heads lie as rows do
        self._raw.add_rms_norm(x.ptr, a.ptr, _at(inner), r.ptr, _at(w), out, rows, x.last, eps, inner_eps)

    def layer_norm(self, x: Rows, w: Vector, b: Vector, y: Rows, *, eps: float, groups: int = 1) -> None:
        """Each row, each head of each row, or each of their groups, to zero mean and unit variance."""
        n = x.last // groups
        for at in range(0, x.width, n):
            row, to = x.ptr + 4 * at, y.ptr + 4 * at
            given = (_part(v, at % x.last) for v in (w, b))
            self._raw.layer_norm(row, x.stride, *given, to, y.stride, x.count.now, n, eps)

    def rope(self, x: Rows, table: Turns, y: Rows, *, norm: Vector, eps: float, interleaved: bool) -> None:
        """Each head turned by the table, after ``rms_norm`` with ``norm`` where that is given."""
        _, heads, dim = x.dims
        self._raw.rope(
            x.ptr, x.stride, _at(norm), table.cos_ptr, table.sin_ptr, y.ptr, y.stride,
            self._tokens.now, heads, dim, 2 * table.half, interleaved, eps,
        )  # fmt: skip

    def rope_append(
        self, q: Rows, k: Rows, v: Rows | None, cache: Cache, table: Turns, y: Rows, *,
        q_norm: Vector, k_norm: Vector, eps: float | None, interleaved: bool,
    ) -> None:  # fmt: skip
        """Queries turned; keys turned, and values, to their pages; with ``eps`` heads are normed first."""
        values, stride = (0, 0) if v is None else (v.ptr, v.stride)
        self._raw.rope_append(
            q.ptr, q.stride, k.ptr, k.stride, values, stride, eps is not None, _at(q_norm), _at(k_norm),
            table.cos_ptr, table.sin_ptr, y.ptr, y.stride, cache.k_ptr, cache.v_ptr, cache.elem,
            cache.arrays.slots_ptr, self._tokens.now, q.dims[1], cache.heads, cache.dim, cache.values,
            2 * table.half, interleaved, eps or 0.0,
        )  # fmt: skip

    def kv_append(self, cache: Cache, k: Rows, v: Rows | None) -> None:
        """Keys and values to their pages; a cache of keys only takes no values."""
        values, stride = (0, 0) if v is None else (v.ptr, v.stride)
        self._raw.kv_append(
            k.ptr, k.stride, values, stride, cache.k_ptr, cache.v_ptr, cache.elem, cache.arrays.slots_ptr,
            self._tokens.now, cache.heads, cache.dim, cache.values,
        )  # fmt: skip

    def paged_attention(
        self,
        q: Rows,
        cache: Cache,
        y: Rows,
        *,
        sinks: Vector,
        scale: float,
        window: int | None,
        softcap: float | None,
        chunk: int | None,
        slopes: Vector,
        values: int | None,
    ) -> None:
        """Attention of every token over the pages of its sequence; ``values`` as in the op."""
        pool = cache.arrays
        v, width = (cache.v_ptr, cache.values) if values is None else (cache.k_ptr, values)
        self._raw.paged_attention(
            q.ptr, q.stride, cache.k_ptr, v, cache.elem, cache.page, cache.heads,
            self._starts, self._context, pool.table_ptr, self._seqs.now, pool.max_pages, q.dims[1], cache.dim,
            width, window or 0, chunk or 0, _at(sinks), _at(slopes), y.ptr, y.stride,
            scale, softcap or 0.0,
        )  # fmt: skip

    def act_mul(self, act: str, gate: Rows, up: Rows, y: Rows) -> None:
        """``y = act(gate) * up``."""
        self._raw.act_mul(
            ACTIVATIONS.index(act), gate.ptr, gate.stride, up.ptr, up.stride, y.ptr, y.stride,
            gate.count.now, gate.width,
        )  # fmt: skip

    def last_rows(self, x: Rows, y: Rows) -> None:
        """The last row of each sequence."""
        self._raw.gather_rows(x.ptr, x.stride, self._last, y.ptr, y.stride, self._seqs.now, x.width)

    def copy(self, x: Rows, y: Rows) -> None:
        """The same entries elsewhere."""
        if x.by_rows and y.by_rows and x.base.element_size() == 4:
            self._raw.copy(x.ptr, x.stride, y.ptr, y.stride, x.count.now, x.width)
        else:
            y.tensor().copy_(x.tensor())

    def reference(self, op: str, outs: list[Rows | AnyCache], *args: Any, **attrs: Any) -> None:
        """An op's body in torch, on views of the rows; caches are renewed in place."""
        given = [_tensor(a) for a in args]
        made = OPS[op].reference(*given, **{k: _plain(v) for k, v in attrs.items()})
        for out, value in zip(outs, made if isinstance(made, tuple | list) else (made,), strict=True):
            if isinstance(out, Rows):
                out.tensor().copy_(value)

    def names(self) -> dict[str, Any]:
        """Everything that a program may name beside its own memory."""
        calls = {
            name: getattr(self, name) for name in vars(Calls) if not name.startswith("_") and name != "names"
        }
        return {**calls, **ELEMS, "seqs": self._step, "inf": float("inf")}


def generated(extra: ctypes.CDLL | None, text: str) -> dict[str, Callable[..., None]]:
    """The calls of kernels that were generated for this program."""
    names = set(re.findall(r"\bfused_[0-9a-f]{8}\b", text))
    assert extra is not None or not names, "generated kernels were not compiled"
    return {name: _generated(extra, name) for name in names if extra is not None}


def _generated(extra: ctypes.CDLL, name: str) -> Callable[..., None]:
    bound: dict[int, Callable[..., None]] = {}

    def call(y: Rows, *inputs: Rows | torch.Tensor, parts: int = 1) -> None:
        n = len(inputs)
        function = bound.get(n)
        if function is None:
            function = bound[n] = bind(extra, name, n)
        pointers = (ctypes.c_void_p * n)(*(x.ptr if isinstance(x, Rows) else x.data_ptr() for x in inputs))
        strides = (ctypes.c_int64 * n)(*(x.stride if isinstance(x, Rows) else 0 for x in inputs))
        function(pointers, strides, y.ptr, y.stride, y.count.now, parts, y.width // parts)

    return call


def _at(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _part(x: torch.Tensor | None, start: int) -> int:
    """The address of a vector from entry ``start`` on; 0 for none."""
    return 0 if x is None else x.data_ptr() + 4 * start


def _tensor(a: Any) -> Any:
    match a:
        case Rows():
            return a.tensor()
        case Step():
            return a.seqs()
        case Cache() | States():
            return a.value
        case _:
            return a


def _plain(v: Any) -> Any:
    if isinstance(v, tuple):
        return tuple(_plain(x) for x in v)
    return v.now if isinstance(v, Count) else v
