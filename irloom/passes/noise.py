"""What rounding does to a program: it is run again with every result moved within its last place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from irloom.ir.elem import Cached, Elem
from irloom.ir.graph import Module

from .report import CAP, FLOOR, SLACK, row_errors
from .rows import Key, Table


@dataclass(frozen=True)
class Noise:
    """The largest relative difference that rounding makes in a row, and rows moved past ``elem``'s cap."""

    size: float
    elem: torch.dtype
    unstable: frozenset[Key]

    def allowed(self, dtype: torch.dtype) -> float:
        """How far apart two programs may be whose sums are taken in other orders."""
        return max(FLOOR[dtype], min(CAP[self.elem], SLACK[self.elem] * self.size))


def noise_between(clean: Table, moved: Iterable[Table], elem: torch.dtype) -> Noise:
    """What disturbed runs of a program show."""
    unstable, size = set[Key](), 0.0
    for table in moved:
        for name, rows in clean.items():
            if not rows.values.is_floating_point() or name.startswith("cache"):
                continue
            errors = row_errors(rows.values, table[name].values)
            near = errors <= CAP[elem]
            size = max(size, errors[near].max().item() if near.any() else 0.0)
            if len(errors) == len(rows.keys):
                unstable.update(rows.keys[int(i)] for i in torch.nonzero(~near))
    return Noise(size, elem, frozenset(unstable))


def coarsest(m: Module) -> torch.dtype:
    """The element with the fewest digits that a program computes in or keeps."""
    found = {torch.float32}
    for f in m.funcs.values():
        for v in (*f.data, *(r for n in f.nodes for r in n.results)):
            elem = v.type.elem.elem if isinstance(v.type.elem, Cached) else v.type.elem
            if isinstance(elem, Elem) and elem.kind == "float" and elem.torch in CAP:
                found.add(elem.torch)
    return max(found, key=lambda d: torch.finfo(d).eps)


def disturber(seed: int, device: torch.device, units: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """Moves every entry at random, by up to so many units of its last place."""
    g = torch.Generator(device).manual_seed(seed)

    def disturb(x: torch.Tensor) -> torch.Tensor:
        by = torch.rand(x.shape, generator=g, device=x.device).mul_(2).sub_(1).mul_(units)
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * (1 + by * torch.finfo(x.dtype).eps)).to(x.dtype)

    return disturb
