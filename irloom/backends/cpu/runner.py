"""Running a lowered program: its names are bound to memory and kernels, then Python runs the text."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from irloom.backends.cpu.elementwise import bind
from irloom.backends.cpu.native import ACTIVATIONS, ELEMS as CACHE_ELEMS, Raw
from irloom.backends.cpu.pack import Packed
from irloom.backends.cpu.step import Count, PoolArrays, Rows, Step, zeros
from irloom.ir.elem import ELEMS
from irloom.ir.op import OPS
from irloom.ir.seqs import PagedCache



class Cache:
    """One layer's pages: keys and values [pages, page, kv heads, head dim], and the pool they belong to."""

    __slots__ = ("arrays", "dim", "elem", "heads", "k", "k_ptr", "page", "v", "v_ptr", "window")

    def __init__(self, value: PagedCache, arrays: PoolArrays) -> None:
        self.k, self.v, self.window, self.arrays = value.k, value.v, value.window, arrays
        self.k_ptr, self.v_ptr, self.elem = value.k.data_ptr(), value.v.data_ptr(), CACHE_ELEMS[value.k.dtype]
        self.page, self.heads, self.dim = value.k.shape[1:]


class Turns:
    """Cosines and sines [T, rotary / 2] of this step's positions, made before the first layer."""

    def __init__(self, raw: Raw, step: Step, inverse: torch.Tensor, scale: float) -> None:
        self.half, self.scale, self.inverse = len(inverse), scale, inverse
        size = step.tokens_now.most * self.half * 4
        self.cos, self.sin = (zeros(size, torch.float32) for _ in range(2))
        self.cos_ptr, self.sin_ptr = self.cos.data_ptr(), self.sin.data_ptr()
        self._make, self._step = raw.rope_table, step

    def update(self) -> None:
        """Positions to angles."""
        step = self._step
        self._make(
            step.positions.ctypes.data, self.inverse.data_ptr(), self.cos_ptr, self.sin_ptr, step.tokens_now.now, self.half, self.scale
        )


Packs = Packed | Mapping[int, Packed]
Vectors = torch.Tensor | Mapping[int, torch.Tensor]


class Runner:
    """A program with everything it names; ``run`` computes one step and returns the logits [S, vocab].

    ``weights`` maps a bound name to its value, or to one per layer; ``caches`` a cache's name to it, or to a list.
    """

    def __init__(
        self,
        text: str,
        raw: Raw,
        step: Step,
        extra: ctypes.CDLL | None,
        weights: Mapping[str, Any],
        caches: Mapping[str, Cache | Sequence[Cache]],
    ) -> None:
        self.raw, self.step, self.weights, self.caches = raw, step, weights, caches
        self.turns: list[Turns] = []
        self.names: dict[str, Any] = {**self._memory(), **kernels(raw, step), **generated(extra, text), **caches}
        exec(compile(text, "<lowered for cpu>", "exec"), self.names)  # noqa: S102
        self._main: Callable[[], Rows] = self.names["main"]

    def run(self) -> torch.Tensor:
        """One step, on what ``step`` holds."""
        for pool in self.step.pools.values():
            self._slots(pool)
        for table in self.turns:
            table.update()
        return self._main().tensor()

    def _slots(self, pool: PoolArrays) -> None:
        step = self.step
        self.raw.slots(
            step.starts.ctypes.data,
            step.context.ctypes.data,
            pool.table.ctypes.data,
            step.seqs_now.now,
            pool.max_pages,
            pool.pool.page,
            pool.slots.ctypes.data,
            0,
        )

    def _memory(self) -> dict[str, Any]:
        """The names that make buffers, views and weights."""
        t, s = self.step.tokens_now, self.step.seqs_now

        def buffer(elem: str, nbytes: Any) -> torch.Tensor:
            size = int(nbytes) if not isinstance(nbytes, Size) else nbytes.most
            return zeros(size, ELEMS[elem].torch)

        def rows(base: torch.Tensor, dims: tuple[Any, ...], elem: str = "f32", *, offset: int = 0, stride: int | None = None) -> Rows:
            sizes = tuple(d.count if isinstance(d, Size) else d for d in dims)
            typed = base if base.dtype == ELEMS[elem].torch else base.view(ELEMS[elem].torch)
            width = 1
            for d in sizes[1:]:
                width *= d
            return Rows(typed, sizes, offset, width if stride is None else stride)

        def turns(inverse: Any, rotary: int, *, scale: float) -> Turns:
            if not isinstance(inverse, torch.Tensor):
                inverse = float(inverse) ** -(torch.arange(0, rotary, 2, dtype=torch.int64).float() / rotary)
            self.turns.append(Turns(self.raw, self.step, inverse.float().contiguous(), scale))
            return self.turns[-1]

        bound = self.weights.__getitem__
        memory = {"buffer": buffer, "rows": rows, "turns": turns, "packed": bound, "vector": bound, "tensor": bound}
        return {**memory, "T": Size(t), "S": Size(s), "tokens": self.step.array("tokens"), "positions": self.step.array("positions")}


class Size:
    """``T`` and ``S`` in the sizes of buffers: arithmetic on the most there can be."""

    def __init__(self, count: Count, factor: int = 1, rest: int = 0) -> None:
        self.count, self.factor, self.rest = count, factor, rest

    @property
    def most(self) -> int:
        """The value at the largest step."""
        return self.count.most * self.factor + self.rest

    def __mul__(self, n: int) -> Size:
        return Size(self.count, self.factor * n, self.rest * n)

    __rmul__ = __mul__

    def __add__(self, n: Any) -> Any:
        return self.most + (n.most if isinstance(n, Size) else n)

    __radd__ = __add__


def kernels(raw: Raw, step: Step) -> dict[str, Callable[..., None]]:
    """The calls that programs make, by name."""
    t, s = step.tokens_now, step.seqs_now
    seq_starts, seq_context, last = (a.ctypes.data for a in (step.starts, step.context, step.last))

    def embedding(table: Packed, ids: Rows, y: Rows, *, scale: float) -> None:
        raw.embedding(table.address, ids.ptr, y.ptr, y.stride, t.now, scale)

    def linear(x: Rows, w: Packed, y: Rows, *, residual: Rows | None) -> None:
        if residual is None:
            raw.linear(w.address, x.ptr, x.stride, y.ptr, y.stride, 0, 0, x.count.now)
        else:
            raw.linear(w.address, x.ptr, x.stride, y.ptr, y.stride, residual.ptr, residual.stride, x.count.now)

    def rms_norm(x: Rows, w: torch.Tensor | None, y: Rows, *, eps: float) -> None:
        n, heads = x.dims[-1], (x.dims[1] if len(x.dims) == 3 else 1)
        weight = 0 if w is None else w.data_ptr()
        if heads == 1:
            raw.rms_norm(x.ptr, x.stride, weight, y.ptr, y.stride, x.count.now, n, eps)
        else:
            for h in range(heads):
                raw.rms_norm(x.ptr + 4 * h * n, x.stride, weight, y.ptr + 4 * h * n, y.stride, x.count.now, n, eps)

    def add_rms_norm(x: Rows, a: Rows, r: Rows, w: torch.Tensor | None, y: Rows | None, *, eps: float, inner: torch.Tensor | None, inner_eps: float) -> None:
        wa = 0 if inner is None else inner.data_ptr()
        norm = (0 if w is None else w.data_ptr(), 0 if y is None else y.ptr)
        raw.add_rms_norm(x.ptr, a.ptr, wa, r.ptr, *norm, x.count.now, x.width, eps, inner_eps)

    def layer_norm(x: Rows, w: torch.Tensor | None, b: torch.Tensor | None, y: Rows, *, eps: float) -> None:
        given = [0 if a is None else a.data_ptr() for a in (w, b)]
        raw.layer_norm(x.ptr, x.stride, *given, y.ptr, y.stride, x.count.now, x.dims[-1], eps)

    def rope(x: Rows, table: Turns, y: Rows, *, norm: torch.Tensor | None, eps: float, interleaved: bool) -> None:
        _, heads, dim = x.dims
        weight = 0 if norm is None else norm.data_ptr()
        raw.rope(
            x.ptr, x.stride, weight, table.cos_ptr, table.sin_ptr, y.ptr, y.stride, t.now, heads, dim, 2 * table.half, interleaved, eps
        )

    def kv_append(cache: Cache, k: Rows, v: Rows) -> None:
        slots = cache.arrays.slots.ctypes.data
        raw.kv_append(
            k.ptr, k.stride, v.ptr, v.stride, cache.k_ptr, cache.v_ptr, cache.elem, slots, t.now, cache.heads, cache.dim, cache.dim
        )

    def paged_attention(q: Rows, cache: Cache, y: Rows, *, sinks: torch.Tensor | None, scale: float, window: int | None, softcap: float | None) -> None:
        pool = cache.arrays
        raw.paged_attention(
            q.ptr, q.stride, cache.k_ptr, cache.v_ptr, cache.elem, cache.page, cache.heads, seq_starts, seq_context,
            pool.table.ctypes.data, s.now, pool.max_pages, q.dims[1], cache.dim, cache.dim, window or 0,
            0 if sinks is None else sinks.data_ptr(), y.ptr, y.stride, scale, softcap or 0.0,
        )  # fmt: skip

    def act_mul(act: str, gate: Rows, up: Rows, y: Rows) -> None:
        raw.act_mul(ACTIVATIONS.index(act), gate.ptr, gate.stride, up.ptr, up.stride, y.ptr, y.stride, gate.count.now, gate.width)

    def last_rows(x: Rows, y: Rows) -> None:
        raw.gather_rows(x.ptr, x.stride, last, y.ptr, y.stride, s.now, x.width)

    def copy(x: Rows, y: Rows) -> None:
        raw.copy(x.ptr, x.stride, y.ptr, y.stride, x.count.now, x.width)

    def reference(op: str, outs: list[Rows], *args: Any, **attrs: Any) -> None:
        given = [_tensor(a, step) for a in args]
        made = OPS[op].reference(*given, **{k: _plain(v) for k, v in attrs.items()})
        for out, value in zip(outs, made if isinstance(made, (tuple, list)) else (made,), strict=True):
            out.tensor().copy_(value)

    calls = (
        embedding, linear, rms_norm, add_rms_norm, layer_norm, rope, kv_append, paged_attention, act_mul, last_rows, copy, reference,
    )  # fmt: skip
    elems = {name: e for name, e in ELEMS.items() if name != "bool"}
    return {f.__name__: f for f in calls} | elems | {"seqs": step, "inf": float("inf")}


def generated(extra: ctypes.CDLL | None, text: str) -> dict[str, Callable[..., None]]:
    """The calls of kernels that were generated for this program."""
    names = set(re.findall(r"\bfused_[0-9a-f]{8}\b", text))
    assert extra is not None or not names, "generated kernels were not compiled"
    return {name: _generated(extra, name) for name in names if extra is not None}


def _generated(extra: ctypes.CDLL, name: str) -> Callable[..., None]:
    bound: dict[int, Callable[..., None]] = {}

    def call(y: Rows, *inputs: Rows | torch.Tensor) -> None:
        n = len(inputs)
        function = bound.get(n)
        if function is None:
            function = bound[n] = bind(extra, name, n)
        pointers = (ctypes.c_void_p * n)(*(x.ptr if isinstance(x, Rows) else x.data_ptr() for x in inputs))
        strides = (ctypes.c_int64 * n)(*(x.stride if isinstance(x, Rows) else 0 for x in inputs))
        function(pointers, strides, y.ptr, y.stride, y.count.now, y.width)

    return call


def _tensor(a: Any, step: Step) -> Any:
    match a:
        case Rows():
            return a.tensor()
        case Step():
            return step.seqs()
        case Cache():
            return PagedCache(a.k, a.v, a.window)
        case _:
            return a


def _plain(v: Any) -> Any:
    if isinstance(v, tuple):
        return tuple(_plain(x) for x in v)
    return v.count.now if isinstance(v, Size) else v
