"""What a product takes along: the norm in front of it, the activation and the residual behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irloom.ir.elem import Quant


@dataclass(frozen=True)
class Form:
    """``residual + softcap(scale * act(h @ weight.T + bias))``, each part only where it is given.

    ``h`` is ``x``, or ``rms_norm(x, norm, eps=eps)`` where ``eps`` is not None (``norm`` may be missing
    then), rounded to ``quant`` (a group of each row at a time, group 0: the whole row) where that is given.
    With ``gated`` the weight's rows are those of the gate, then as many of the other factor:
    ``act(gate + bias) * (up + bias)`` takes the place of ``act``, and the result is half as wide.

    ``emits`` is the ``quant`` of the product that alone reads the result. Of more than a few rows it is
    rounded here, in the first bytes of its memory (``quantized.within``), and that product, whose ``x`` is
    ``emitted``, finds it there. Of few rows neither says anything: one kernel rounds and multiplies.

    >>> Form(eps=1e-5, act="silu", gated=True).plain
    False
    """

    eps: float | None = None
    act: str | None = None
    gated: bool = False
    scale: float = 1.0
    softcap: float | None = None
    quant: Quant | None = None
    emits: Quant | None = None
    emitted: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is ``x @ weight.T``, with a bias or a residual at most."""
        return self == Form()

    @property
    def numbers(self) -> tuple[float, float]:
        """What kernels multiply by, and cap at where they do."""
        return float(self.scale), float(self.softcap or 1.0)

    @property
    def constants(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        return {"GATED": self.gated, "ACT": self.act, "CAPPED": self.softcap is not None}


@dataclass(frozen=True)
class Gate:
    """What is between the products of an expert: ``act(gate) * up``.

    The first product's rows are those of the gate, then as many of ``up``; ``woven`` they alternate. With a
    ``limit`` it is ``clamped_silu_mul`` with that, ``alpha`` and ``shift``.

    >>> Gate("gelu").act
    'gelu'
    """

    act: str = "silu"
    woven: bool = False
    limit: float | None = None
    alpha: float = 1.0
    shift: float = 0.0
