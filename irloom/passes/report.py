"""How far two tensors are apart, and how far they may be.

A tolerance has to fit the element, the depth and the values: rounding of one op is a few units of the last
place, and each layer hands it on, larger or smaller. So there are two numbers per element. Up to the *floor*
nothing is asked: what one function differs by when its sums are taken in another order. Above it the program
itself says what rounding does to it: it is run again with every result moved at random within half a unit of
its last place (Monte Carlo arithmetic; Parker, 1997), and ``SLACK`` times that difference is allowed. No
program is so unstable that more than the *cap* is. A lossy pass has a budget for one layer; errors of layers
add up as a random walk does, so the outputs of ``n`` layers may move by its ``sqrt(n)``-fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FLOOR = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Differences that are rounding whatever the program is, by an output's element."""
CAP = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Differences that no rounding excuses, by the coarsest element that the program computes in."""
SLACK = {torch.float64: 8.0, torch.float32: 8.0, torch.float16: 2.0, torch.bfloat16: 2.0}
"""How many times further apart than rounding moves a program two orders of the same sums may be.

A product in f32 or f64 adds up in the element itself, so that its order matters by more than the last place;
one in 16 bits adds up in f32 and rounds once.
"""
LOST = 0.5
"""The largest share of their norm that outputs may lose to a lossy pass, whatever its budget and depth."""
SMALL = 0.1
"""Rows are measured by their own largest entry, but by no less than this share of the largest of all rows."""


@dataclass(frozen=True)
class Report:
    """How far the outputs of two programs are apart.

    ``max_abs`` is the largest difference of two entries, ``relative`` the largest difference in a row as a
    share of that row's largest entry (infinite where only one side is finite), ``norm`` the norm of the
    difference as a share of the output's, ``cosine`` that of the angle between the two. For logits, ``kl`` is
    the largest divergence of a token's two distributions in nats, ``top1`` the share of tokens whose
    likeliest next token is the same. ``error`` is the number that counts (``norm`` where a pass is lossy,
    else ``relative``) and ``allowed`` its limit. ``rows`` were compared; ``unstable`` more were not, for
    rounding alone moves them past every limit (a router between two experts).
    """

    max_abs: float
    relative: float
    norm: float
    cosine: float
    error: float
    allowed: float
    where: str
    kl: float | None = None
    top1: float | None = None
    rows: int = 0
    unstable: int = 0

    @property
    def ok(self) -> bool:
        """Whether the difference is within the limit."""
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """The error as a multiple of what is allowed; of several reports the largest is the worst."""
        if not self.error:
            return 0.0
        return self.error / self.allowed if self.allowed else torch.inf

    def __str__(self) -> str:
        return (
            f"{self.where}: error {self.error:.3g}, allowed {self.allowed:.3g} (max abs {self.max_abs:.3g})"
        )


def report(
    want: torch.Tensor,
    got: torch.Tensor,
    where: str,
    allowed: float | None = None,
    budget: float = 0.0,
    logits: bool = False,
) -> Report:
    """The report on ``got`` in place of ``want``, tensors of one shape; rows are their last dims.

    ``allowed`` replaces the floor of the element. With a ``budget`` it is the norm that counts, and its limit
    is the budget. Integers and bools must be equal.
    """
    if torch.equal(want, got):
        return _same(want, where, allowed, budget, logits)
    if want.is_complex():
        want, got = torch.view_as_real(want), torch.view_as_real(got)
    parts = [_part(a, b) for a, b in zip(_blocks(want), _blocks(got), strict=True)]
    scale = max((p.largest for p in parts), default=0.0) or 1 / SMALL
    max_abs = max((p.max_abs for p in parts), default=0.0)
    relative = max((p.relative(scale) for p in parts), default=0.0)
    gap, one, two, dot = (sum(getattr(p, k) for p in parts) for k in ("gap", "one", "two", "dot"))
    norm = float((gap / (one or 1.0)) ** 0.5)
    cosine = dot / (one * two) ** 0.5 if one and two else float(one == two)
    kl, top1 = _distributions(want, got) if logits and want.numel() else (None, None)
    error, limit = relative, FLOOR.get(want.dtype, 0.0) if allowed is None else allowed
    if want.dtype in FLOOR and budget:
        error, limit = norm, budget
    if want.is_floating_point() and want.numel() and not any(p.speaks for p in parts):
        error = torch.inf  # two programs that give nothing but NaN have not been compared
    rows = want.shape[0] if want.ndim else 1
    return Report(max_abs, relative, norm, min(cosine, 1.0), error, limit, where, kl, top1, rows)


def _same(want: torch.Tensor, where: str, allowed: float | None, budget: float, logits: bool) -> Report:
    """The report on equal tensors, of which there are many and large ones."""
    limit = budget or (FLOOR.get(want.dtype, 0.0) if allowed is None else allowed)
    rows = want.shape[0] if want.ndim else 1
    same = (0.0, 1.0) if logits and want.numel() else (None, None)
    return Report(0.0, 0.0, 0.0, 1.0, 0.0, limit, where, *same, rows)


def row_errors(want: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """f64[n]: what ``relative`` is for each of the rows [n, ...]."""
    parts = [_part(a, b) for a, b in zip(_blocks(want), _blocks(got), strict=True)]
    scale = max((p.largest for p in parts), default=0.0) or 1 / SMALL
    return torch.cat([p.errors(scale) for p in parts])


@dataclass(frozen=True)
class _Part:
    """Some rows of two tensors: per row the largest difference and the largest entry, and sums of squares."""

    gaps: torch.Tensor
    sizes: torch.Tensor
    gap: float
    one: float
    two: float
    dot: float
    speaks: bool

    @property
    def max_abs(self) -> float:
        return self.gaps.max().item() if len(self.gaps) else 0.0

    @property
    def largest(self) -> float:
        return self.sizes.max().item() if len(self.sizes) else 0.0

    def errors(self, scale: float) -> torch.Tensor:
        return self.gaps / self.sizes.clamp(min=SMALL * scale)

    def relative(self, scale: float) -> float:
        errors = self.errors(scale)
        return errors.max().item() if len(errors) else 0.0


def _part(want: torch.Tensor, got: torch.Tensor) -> _Part:
    a, b = (x if x.dtype in (torch.float64, torch.float32) else x.double() for x in (want, got))
    same = (a == b) | (a.isnan() & b.isnan())  # also infinities
    gap = (a - b).abs().masked_fill_(same, 0.0).nan_to_num_(torch.inf, posinf=torch.inf)
    lost = ~(a.isfinite() & b.isfinite())
    a, b = (a.masked_fill(lost, 0.0), b.masked_fill(lost, 0.0)) if lost.any() else (a, b)
    gaps, sizes = (x.amax(-1).double() if x.shape[-1] else x.sum(-1).double() for x in (gap, a.abs()))
    one, two, dot = (x.sum(dtype=torch.float64).item() for x in (a * a, b * b, a * b))
    far = (gap * gap).sum(dtype=torch.float64).item()
    return _Part(gaps, sizes, far, one, two, dot, bool((~want.isnan()).any()))


BLOCK = 1 << 22
"""Entries that are compared at a time: logits of a large vocabulary are not all in memory in f64."""


def _blocks(x: torch.Tensor) -> list[torch.Tensor]:
    flat = x.reshape(x.shape[0] if x.ndim > 1 else 1, -1) if x.ndim else x.reshape(1, 1)
    return list(torch.split(flat, max(BLOCK // max(flat.shape[1], 1), 1)))


def _distributions(want: torch.Tensor, got: torch.Tensor) -> tuple[float, float]:
    """The largest divergence KL(want | got), and the share of rows with the same largest entry."""
    worst, same, rows = 0.0, 0, 0
    for a, b in zip(_blocks(want), _blocks(got), strict=True):
        p, q = a.log_softmax(-1, torch.float64), b.log_softmax(-1, torch.float64)
        each = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)
        worst = max(worst, each.nan_to_num(torch.inf, posinf=torch.inf).max().item())
        chosen = a.gather(-1, b.argmax(-1, keepdim=True))[:, 0]  # of two equally likely, either
        same, rows = same + int((chosen == a.amax(-1)).sum()), rows + len(a)
    return max(worst, 0.0), same / rows
