"""Kernels that the library looks up by name: convolutions, scans, delta rules, as one op each while captured.

The library marks a function that a kernel package may replace, and what it falls back to unrolls over time.
The mark names the kernel, so a kernel is found in every model that uses it, without knowing the model. What
is around the recurrence itself (biases, activations, normalizations, gates) is spelled out
in torch's ops.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irloom.frontends.hf.recurrent import torch_op
from irloom.ir import ops
from irloom.ir.errors import TraceError

Kernel = Callable[..., Any]


@contextlib.contextmanager
def recurrent_kernels(model: nn.Module) -> Iterator[None]:
    """Within, the kernels that the code of ``model`` calls are irloom's ops."""
    names = {base.__module__ for m in model.modules() for base in type(m).__mro__}
    modules = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    found = [
        (module, name, fn, KERNELS[kernel])
        for module in modules
        if not module.__name__.startswith("torch")
        for name, fn in list(vars(module).items())
        if (kernel := kernel_name(module, name, fn)) in KERNELS
    ]
    try:
        for module, name, _, kernel in found:
            setattr(module, name, kernel)
        yield
    finally:
        for module, name, fn, _ in found:
            setattr(module, name, fn)


def kernel_name(module: ModuleType, name: str, fn: Any) -> str:
    """The kernel that a function stands for, by the library's mark or by its own name; else nothing."""
    link: Any = fn
    while callable(link) and (inner := getattr(link, "__wrapped__", None)) is not None:
        code: Any = getattr(link, "__code__", None)
        cells: Any = getattr(link, "__closure__", None) or ()
        held: dict[str, Any] = dict(
            zip(code.co_freevars if code else (), (c.cell_contents for c in cells), strict=False)
        )
        if "func_name" in held and "package" in held:
            return str(held["func_name"])
        link = inner
    own = getattr(fn, "__module__", None) == module.__name__ and not isinstance(fn, type)
    return name if own and callable(fn) else ""


OTHERWISE = {"initial_state", "initial_states", "conv_states", "seq_idx", "cu_seqlens", "scale"}
"""What would change the result. The rest is how a kernel works, or was passed on to it with everything."""


def _only(kernel: str, rest: Mapping[str, Any]) -> None:
    """``TraceError`` where a kernel is given what its op here does not take."""
    unknown = sorted(name for name in OTHERWISE if rest.get(name) is not None)
    if unknown:
        raise TraceError(f"{kernel} takes `{unknown[0]}`, which irloom does not know")


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **rest: Any
) -> Tensor:
    """``x`` [B, C, T], ``weight`` [C, K]: depthwise, and an activation on top."""
    _only("causal_conv1d_fn", rest)
    from transformers.activations import ACT2FN

    y = torch_op(ops.causal_conv)(x.to(weight.dtype).transpose(1, 2), weight, bias).transpose(1, 2)
    return (y if activation is None else ACT2FN[activation](y)).to(x.dtype)


def selective_scan_fn(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    D: Tensor | None = None,  # noqa: N803 the library's name
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **rest: Any,
) -> Any:
    """Mamba: ``x``, ``dt``, ``z`` [B, C, T], ``a`` [C, N], ``b``, ``c`` [B, N, T]."""
    _only("selective_scan_fn", rest)
    dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None]
    dt = F.softplus(dt) if delta_softplus else dt
    rows = [part.transpose(1, 2) for part in (x, dt, b, c)]
    y = torch_op(ops.selective_scan)(rows[0], rows[1], a, rows[2], rows[3]).transpose(1, 2)
    y = y if D is None else y + x * D[None, :, None]
    y = y if z is None else y * F.silu(z)
    return (y.to(x.dtype), x.new_empty(1, *a.shape)) if return_last_state else y.to(x.dtype)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    chunk_size: int = 0,
    D: Tensor | None = None,  # noqa: N803 the library's name
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **rest: Any,
) -> Any:
    """Mamba-2: ``x`` [B, T, H, P], ``dt`` [B, T, H], ``a`` [H], ``b``, ``c`` [B, T, G, N]."""
    _only("mamba_chunk_scan_combined", rest)
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = F.softplus(dt) if dt_softplus else dt
    dt = dt if tuple(dt_limit) == (0.0, float("inf")) and dt_softplus else dt.clamp(*dt_limit)
    wide = x.float()
    y = torch_op(ops.ssd_scan)(wide, dt, a, b, c)
    y = y if D is None else y + wide * D[..., None]
    y = y if z is None else y * F.silu(z)
    return (y, x.new_empty(1, *x.shape[2:], b.shape[3])) if return_final_states else y


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """``query``, ``key`` [B, T, KH, K], ``value`` [B, T, H, V], ``g`` (logs) [B, T, H] or [B, T, H, K].

    A query and key head serves ``H / KH`` value heads.
    """
    _only("gated_delta_rule", rest)
    query, key = (_unit(x.float()) if use_qk_l2norm_in_kernel else x.float() for x in (query, key))
    query = query * query.shape[-1] ** -0.5
    if (shared := value.shape[2] // key.shape[2]) > 1:
        query, key = (x.repeat_interleave(shared, dim=2) for x in (query, key))
    decay = (g[..., None] if g.ndim == 3 else g).float()
    y = torch_op(ops.gated_delta)(query, key, value.float(), decay, beta.float())
    state = value.new_empty(1, value.shape[2], key.shape[3], value.shape[3])
    return y.to(value.dtype), state if output_final_state else None


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)


def rwkv_linear_attention(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """RWKV-4: ``key``, ``value`` [B, T, C], ``time_decay`` (its logarithm) and ``time_first`` [C]."""
    return torch_op(ops.wkv)(key, value, -torch.exp(time_decay), time_first), None


KERNELS: dict[str, Kernel] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "selective_scan_fn": selective_scan_fn,
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "chunk_gated_delta_rule": gated_delta_rule,
    "chunk_kda": gated_delta_rule,
    "rwkv_linear_attention": rwkv_linear_attention,
}
"""What stands for a kernel, by the name under which kernel packages have it."""
