"""The op set. One function per op; ``OPS`` holds them by name.

Tensor ops (``elementwise``, ``shape``, ``reduce``, ``matmul``, ``index``) are the closed set that a traced model
decomposes to. Model ops (``norm``, ``attention``) are what ``raise`` finds in it, fused ops what passes make of those.
"""

from .attention import attention, kv_append, paged_attention, positions, rope
from .collective import all_reduce
from .elementwise import (
    abs_,
    add,
    cast,
    cos,
    div,
    eq,
    erf,
    exp,
    floor_div,
    ge,
    gelu,
    gt,
    le,
    log,
    logical_and,
    logical_not,
    logical_or,
    lt,
    maximum,
    minimum,
    mod,
    mul,
    ne,
    neg,
    pow_,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    silu,
    sin,
    softcap,
    sqrt,
    sub,
    tanh,
    where,
)
from .fused import add_layer_norm, add_rms_norm, gelu_mul, silu_mul
from .index import embedding, gather, last_rows
from .matmul import linear, matmul
from .norm import layer_norm, rms_norm
from .reduce import amax, amin, argmax, cumsum, mean, softmax, sum_, topk
from .shape import arange, concat, expand, full, pad, permute, reshape, slice_, split

__all__ = [name for name in dir() if not name.startswith("__")]
