"""The kernels as Python functions: compiled on first use, called through ctypes, no torch in between.

A raw call is ``kernels.raw.rms_norm(x, ldx, w, y, ldy, T, N, eps)``: every pointer an int (0: absent), every
size an int64, every number a double. ``ld`` is the distance between rows, in elements. Activations are f32.
Raw calls cost about a microsecond and release the GIL; the methods of ``Kernels`` take tensors, and a few.

Every kernel writes the same bits for a row whatever else is in the batch, on any number of threads.

===============  ==========================================================================================
raw function     arguments, and what it computes
===============  ==========================================================================================
linear           weight, x, ldx, y, ldy, residual, ldr, T: y = x @ W.T + bias + residual; residual may be y
linear_act       as linear, act, scale, cap: y = residual + cap * tanh(z / cap), z = scale * act(x @ W.T +
                 bias); cap 0 is none
expert_linear    weight, E, stride, x, ldx, wide, index i32[T, k], ldi, k, y, ldy, T: y[t, j] = x[t] @
                 W[index[t, j]].T + bias; x[t, j] with wide; experts are stride bytes apart
head_linear      weight, H, stride, x, ldx, y, ldy, T: y[t, h] = x[t, h] @ W[h].T; W are stride bytes apart
moe              act, up, up_stride, down, down_stride, E, x, ldx, index, ldi, weights, ldw, k, y, ldy, T
embedding        weight, ids i32[T], y, ldy, T, scale: rows of a packed weight, times scale
rms_norm         x, ldx, w, y, ldy, T, N, eps: w may be 0
l2_norm          x, ldx, y, ldy, T, N, eps: x / sqrt(sum(x ** 2) + eps)
add_rms_norm     x, a, wa, r, w, y, T, N, eps, eps_a: r = x + a, or x + rms_norm(a, wa) where one of wa and
                 eps_a is not 0; then y = rms_norm(r, w) unless y is 0; r may be x
layer_norm       x, ldx, w, b, y, ldy, T, N, eps: w and b may be 0
rope_table       positions i32[T], inv_freq[half], cos, sin, T, half, scale: [T, half], once per step
rope             x, ldx, w, cos, sin, y, ldy, T, heads, D, rotary, interleaved, eps: a norm per head first
                 with w; y may be x
slots            starts, context, table, S, max_pages, page, slots i64[T], positions i32[T] or 0:
                 once per step and pool
rope_append      q, ldq, k, ldk, v, ldv, norm, qw, kw, cos, sin, y, ldy, kcache, vcache, elem, slots, T, H,
                 KV, D, Dv, rotary, interleaved, eps: rope of q to y, of k to the cache with v; with norm a
                 norm per head first, times qw and kw unless 0
kv_append        k, ldk, v, ldv, kcache, vcache, elem, slots, T, KV, D, Dv
paged_attention  q, ldq, kcache, vcache, elem, page, KV, starts, context, table, S, max_pages, H, D, Dv,
                 window, chunk, sinks, slopes, out, ldo, scale, softcap: window, chunk, softcap 0 are none
act_mul          kind, gate, ldg, up, ldu, y, ldy, T, N: y = kind(gate) * up; kind(gate) without up
softmax          x, ldx, y, ldy, T, N
sums             x, ldx, w, ldw, y, ldy, T, A, K, B, scale: y[t, a, b] = scale * the sum over k of
                 x[t, a, k, b], times w[t, k] unless w is 0
gather           x, ldx, index i32, ldi, y, ldy, T, A, N, K: y[t, a, k] = x[t, a, index[t, a, k]]
topk             x, ldx, values, ldv, index i32, ldi, T, N, k: largest first
route            x, ldx, bias, weights, ldw, index i32, ldi, T, E, k, score, by_logits, groups, top_groups,
                 best, normalize, scale: the op, for rows of logits; score counts as in SCORES
gather_rows      x, ldx, index i32[T], y, ldy, T, N
copy             x, ldx, y, ldy, T, N
move             x, ldx, sx[3], y, ldy, sy[3], T, n[3]: y[t, a, b, c] = x[t, a, b, c], with steps sx and sy
causal_conv      x, ldx, w, bias, y, ldy, C, K, states
token_shift      x, ldx, y, ldy, C, states
linear_scan      x, ldx, decay, ldd, y, ldy, C, states
selective_scan   x, ldx, dt, lddt, a, b, ldb, c, ldc, y, ldy, C, N, states
ssd_scan         x, ldx, dt, lddt, a, b, ldb, c, ldc, y, ldy, H, P, G, N, states
gated_delta      q, ldq, k, ldk, v, ldv, decay, ldd, beta, ldb, y, ldy, H, K, V, D, states: beta 0 is none
wkv              k, ldk, v, ldv, decay, first, y, ldy, C, states
argmax           x, ldx, T, N, out i64[T]
read             data, bytes: the read-bandwidth probe
set_threads      n
threads
===============  ==========================================================================================

``elem``: 0 f32, 1 bf16, 2 f16 (``ELEMS``). ``kind``: ``ACTIVATIONS``. ``weight``: ``Packed.address``. Caches:
[pages, page, KV heads, head dim]; ``table`` i32 [S, max_pages]; ``starts`` i32 [S + 1]; ``context`` i32 [S].
``states``: slots [slots, ...], starts, context, table, S, max_slots, every; slots are renewed in place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from irloom.backends.cpu import toolchain
from irloom.backends.cpu.pack import Packed

ELEMS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SCORES = ("softmax", "sigmoid", "sqrt_softplus")
"""Of routers, as the kernel numbers them."""

ACTIVATIONS = (
    "identity", "silu", "gelu_tanh", "gelu_erf", "relu", "relu2", "sigmoid", "tanh", "quick_gelu", "mish",
    "softplus",
)  # fmt: skip

_STATES = "ppppiii"
# p pointer, i int64, d double; after the colon what is returned.
SIGNATURES = {
    "linear": "ppipipii",
    "linear_act": "ppipipiiidd",
    "expert_linear": "piipiipiipii",
    "head_linear": "piipipii",
    "moe": "ipipiipipipiipii",
    "embedding": "pppiid",
    "rms_norm": "pippiiid",
    "l2_norm": "pipiiid",
    "add_rms_norm": "ppppppiidd",
    "layer_norm": "pipppiiid",
    "rope_table": "ppppiid",
    "rope": "pippppiiiiiid",
    "slots": "pppiiipp",
    "rope_append": "pipipiipppppippipiiiiiiid",
    "kv_append": "pipippipiiii",
    "paged_attention": "pippiiipppiiiiiiipppidd",
    "act_mul": "ipipipiii",
    "softmax": "pipiii",
    "sums": "pipipiiiiid",
    "gather": "pipipiiiii",
    "topk": "pipipiiii",
    "route": "pippipiiiiiiiiiid",
    "gather_rows": "pippiii",
    "copy": "pipiii",
    "move": "piiiipiiiiiiii",
    "causal_conv": "pipppiii" + _STATES,
    "token_shift": "pipii" + _STATES,
    "linear_scan": "pipipii" + _STATES,
    "selective_scan": "pipippipipiii" + _STATES,
    "ssd_scan": "pipippipipiiiii" + _STATES,
    "gated_delta": "pipipipipipiiiii" + _STATES,
    "wkv": "pipipppii" + _STATES,
    "argmax": "piiip",
    "read": "pi:d",
    "set_threads": "i",
    "threads": ":i",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


class Raw:
    """The C functions of one compiled library: one attribute for each of ``SIGNATURES``."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        for name, signature in SIGNATURES.items():
            setattr(self, name, bind(self.library, f"irl_{name}", signature))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"no kernel `{name}`; there are {', '.join(SIGNATURES)}")


def bind(library: ctypes.CDLL, name: str, signature: str) -> Callable[..., Any]:
    """One C function with its types: ``p`` pointer, ``i`` int64, ``d`` double, after ``:`` the result."""
    takes, _, gives = signature.partition(":")
    function = library[name]
    function.argtypes = [_TYPES[letter] for letter in takes]
    function.restype = _TYPES[gives] if gives else None
    return function


@cache
def load_kernels(march: str = "native", folder: Path | None = None) -> Kernels | None:
    """The compiled kernels; None when this machine has no C++ compiler. Compiles on a machine's first use."""
    path = toolchain.build(toolchain.kernel_sources(), march, folder)
    return None if path is None else Kernels(path)


class Kernels:
    """The kernels on tensors. The caller owns every output; rows may be strided, columns are contiguous."""

    def __init__(self, path: Path) -> None:
        self.path, self.raw = path, Raw(path)

    def compile_extra(self, source: str, march: str = "native", folder: Path | None = None) -> ctypes.CDLL:
        """Compile generated C++ that includes ``extra.h``, and give it this library's thread pool."""
        path = toolchain.build({"extra.cpp": source}, march, folder)
        assert path is not None, "there was a compiler for the kernels"
        library = ctypes.CDLL(str(path))
        pool = [
            ctypes.cast(self.raw.library[name], ctypes.c_void_p) for name in ("irl_parallel", "irl_threads")
        ]
        bind(library, "irl_extra_init", "pp")(*pool)
        return library

    def linear(self, weight: Packed, x: Tensor, y: Tensor, residual: Tensor | None = None) -> None:
        """``y[T, N] = x[T, K] @ W.T + bias + residual``; ``residual`` may be ``y``."""
        r, ldr = (0, 0) if residual is None else (residual.data_ptr(), residual.stride(0))
        self.raw.linear(
            weight.address, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), r, ldr, x.shape[0]
        )

    def embedding(self, weight: Packed, ids: Tensor, y: Tensor, scale: float = 1.0) -> None:
        """``y[t] = W[ids[t]] * scale``; ids i32."""
        self.raw.embedding(weight.address, ids.data_ptr(), y.data_ptr(), y.stride(0), ids.shape[0], scale)

    def rms_norm(self, x: Tensor, w: Tensor | None, y: Tensor, eps: float) -> None:
        """Rows of [T, N]; ``w`` [N] or none."""
        self.raw.rms_norm(x.data_ptr(), x.stride(0), _at(w), y.data_ptr(), y.stride(0), *x.shape, eps)

    def add_rms_norm(
        self,
        x: Tensor,
        a: Tensor,
        r: Tensor,
        w: Tensor | None,
        y: Tensor | None,
        eps: float,
        wa: Tensor | None = None,
    ) -> None:
        """``r = x + a``, or ``x + rms_norm(a, wa)``; ``y = rms_norm(r, w)``. Rows contiguous."""
        inner = (_at(wa), 0.0 if wa is None else eps)
        self.raw.add_rms_norm(
            x.data_ptr(), a.data_ptr(), inner[0], r.data_ptr(), _at(w), _at(y), *x.shape, eps, inner[1]
        )

    def layer_norm(self, x: Tensor, w: Tensor | None, b: Tensor | None, y: Tensor, eps: float) -> None:
        """Rows of [T, N]; ``w`` and ``b`` [N] or none."""
        self.raw.layer_norm(
            x.data_ptr(), x.stride(0), _at(w), _at(b), y.data_ptr(), y.stride(0), *x.shape, eps
        )

    def rope_table(
        self, positions: Tensor, inv_freq: Tensor, cos: Tensor, sin: Tensor, scale: float = 1.0
    ) -> None:
        """``cos`` and ``sin`` [T, half] of i32 ``positions`` and f32 ``inv_freq`` [half]."""
        sizes = positions.shape[0], inv_freq.shape[0]
        self.raw.rope_table(
            positions.data_ptr(), inv_freq.data_ptr(), cos.data_ptr(), sin.data_ptr(), *sizes, scale
        )

    def rope(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        y: Tensor,
        *,
        w: Tensor | None = None,
        eps: float = 0.0,
        interleaved: bool = False,
    ) -> None:
        """``x`` and ``y`` [T, heads, D], a row's heads together; rotates ``2 * cos.shape[1]`` dims."""
        t, heads, dim = x.shape
        self.raw.rope(
            x.data_ptr(),
            x.stride(0),
            _at(w),
            cos.data_ptr(),
            sin.data_ptr(),
            y.data_ptr(),
            y.stride(0),
            t,
            heads,
            dim,
            2 * cos.shape[1],
            interleaved,
            eps,
        )

    def slots(
        self,
        starts: Tensor,
        context: Tensor,
        table: Tensor,
        page: int,
        slots: Tensor,
        positions: Tensor | None = None,
    ) -> None:
        """Where each token of the step goes in a pool, and its position."""
        self.raw.slots(
            starts.data_ptr(),
            context.data_ptr(),
            table.data_ptr(),
            *table.shape,
            page,
            slots.data_ptr(),
            _at(positions),
        )

    def kv_append(self, k: Tensor, v: Tensor, kcache: Tensor, vcache: Tensor, slots: Tensor) -> None:
        """``k`` and ``v`` [T, KV, D] into caches [P, page, KV, D] at ``slots``."""
        t, heads, dim = k.shape
        self.raw.kv_append(
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            kcache.data_ptr(),
            vcache.data_ptr(),
            ELEMS[kcache.dtype],
            slots.data_ptr(),
            t,
            heads,
            dim,
            v.shape[2],
        )

    def paged_attention(
        self,
        q: Tensor,
        kcache: Tensor,
        vcache: Tensor,
        starts: Tensor,
        context: Tensor,
        table: Tensor,
        out: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        chunk: int | None = None,
        slopes: Tensor | None = None,
    ) -> None:
        """``q`` [T, H, D], ``out`` [T, H, Dv]; each query sees its sequence's keys up to its own position."""
        self.raw.paged_attention(
            q.data_ptr(),
            q.stride(0),
            kcache.data_ptr(),
            vcache.data_ptr(),
            ELEMS[kcache.dtype],
            *kcache.shape[1:3],
            starts.data_ptr(),
            context.data_ptr(),
            table.data_ptr(),
            *table.shape,
            q.shape[1],
            q.shape[2],
            vcache.shape[3],
            window or 0,
            chunk or 0,
            _at(sinks),
            _at(slopes),
            out.data_ptr(),
            out.stride(0),
            scale,
            softcap or 0.0,
        )

    def act_mul(self, kind: str, gate: Tensor, up: Tensor | None, y: Tensor) -> None:
        """``y = kind(gate) * up`` over [T, N]; ``y`` may be an operand."""
        u, ldu = (0, 0) if up is None else (up.data_ptr(), up.stride(0))
        self.raw.act_mul(
            ACTIVATIONS.index(kind),
            gate.data_ptr(),
            gate.stride(0),
            u,
            ldu,
            y.data_ptr(),
            y.stride(0),
            *gate.shape,
        )

    def gather_rows(self, x: Tensor, index: Tensor, y: Tensor) -> None:
        """``y[t] = x[index[t]]``; index i32."""
        self.raw.gather_rows(x.data_ptr(), x.stride(0), index.data_ptr(), y.data_ptr(), y.stride(0), *y.shape)

    def copy(self, x: Tensor, y: Tensor) -> None:
        """Rows of [T, N] with strides of their own."""
        self.raw.copy(x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), *x.shape)

    def argmax(self, x: Tensor, out: Tensor) -> None:
        """First index of each row's largest; out i64 [T]."""
        self.raw.argmax(x.data_ptr(), x.stride(0), *x.shape, out.data_ptr())

    def set_threads(self, n: int) -> None:
        """Threads that take part in every kernel, the caller's included."""
        self.raw.set_threads(n)

    @property
    def threads(self) -> int:
        return self.raw.threads()

    def read_bandwidth(self, data: Tensor) -> float:
        """Bytes per second of one read of ``data`` by all threads; the caller repeats and takes the best."""
        start = perf_counter()
        self.raw.read(data.data_ptr(), data.nbytes)
        return data.nbytes / (perf_counter() - start)


def _at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
