"""Activations in f32, by their names in the IR: for every kernel that has one at its end.

Of what Triton's interpreter and its compiler both know; accurate to a few units of the last place.
"""

from __future__ import annotations

from .mode import INTERPRETED, kernel, tl


@kernel
def activated(x, ACT: tl.constexpr):
    """``ACTIVATIONS[ACT](x)`` of ``ir.ops.activation`` for entries of f32."""
    if ACT == "silu":
        return x * sigmoid(x)
    elif ACT == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "quick_gelu":
        return x * sigmoid(1.702 * x)
    elif ACT == "mish":
        return x * tanh(softplus(x))
    elif ACT == "relu":
        return relu(x)
    elif ACT == "relu2":
        return relu(x) * relu(x)
    elif ACT == "sigmoid":
        return sigmoid(x)
    elif ACT == "tanh":
        return tanh(x)
    else:
        tl.static_assert(ACT == "softplus", "no such activation")
        return softplus(x)


@kernel
def sigmoid(x):
    """``1 / (1 + e ** -x)`` in four instructions: those that a compiler adds keep numbers below 2 ** -126,
    and a gate of a prompt is bound by instructions as much as by memory.
    """
    if INTERPRETED:
        return tl.sigmoid(x)
    return tl.inline_asm_elementwise(
        """{ mul.f32 $0, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 $0, $0;
        add.f32 $0, $0, 0f3F800000; rcp.approx.ftz.f32 $0, $0; }""",
        "=f,f", [x], tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@kernel
def relu(x):
    """``max(x, 0)``; a NaN stays one."""
    return tl.where(x < 0.0, 0.0, x)


@kernel
def softplus(x):
    """``log(1 + e ** x)``."""
    return relu(x) + log1p(tl.exp(-tl.abs(x)))


@kernel
def tanh(x):
    """The hyperbolic tangent: near 0 the first terms of its series, which keep their digits."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x * (1.0 - s * (0.3333333333 - s * (0.1333333333 - s * (0.0539682540 - s * 0.0218694885))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0.0, -far, far))


@kernel
def log1p(x):
    """``log(1 + x)``; near 0 by ``2 * atanh(x / (2 + x))``."""
    s = x / (2.0 + x)
    z = s * s
    near = 0.3333333333 + z * (0.2 + z * (0.1428571429 + z * (0.1111111111 + z / 11.0)))
    return tl.where(tl.abs(x) < 0.4, 2.0 * s * (1.0 + z * near), tl.log(1.0 + x))


@kernel
def expm1(x):
    """``e ** x - 1``; near 0 by its series."""
    near = x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0)))))
    return tl.where(tl.abs(x) < 0.1, near, tl.exp(x) - 1.0)


@kernel
def larger(a, b):
    """The larger of two; NaN where one is."""
    return tl.where((a > b) | (a != a), a, b)


@kernel
def smaller(a, b):
    """The smaller of two; NaN where one is."""
    return tl.where((a < b) | (a != a), a, b)


@kernel
def power(x, N: tl.constexpr):
    """``x ** N`` for 2, 3 and 4."""
    square = x * x
    if N == 2:
        return square
    elif N == 3:
        return square * x
    else:
        return square * square


@kernel
def mod(a, b):
    """``a % b`` with the sign of ``b``."""
    if a.dtype.is_floating():
        return a - tl.floor(a / b) * b
    else:
        rest = a % b
        return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@kernel
def floor_div(a, b):
    """``a // b``, rounded down."""
    if a.dtype.is_floating():
        return tl.floor(a / b)
    else:
        return (a - mod(a, b)) // b


@kernel
def clamped_silu_mul(gate, up, limit, alpha, shift):
    """The op ``clamped_silu_mul``."""
    g, u = smaller(gate, limit), smaller(larger(up, -limit), limit)
    return g * sigmoid(alpha * g) * (u + shift)


@kernel
def xielu(x, above, below, beta, eps):
    """The op ``xielu``."""
    return tl.where(x > 0.0, above * x * x, below * (expm1(smaller(x, eps)) - x)) + beta * x
