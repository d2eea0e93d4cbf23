"""Products of rows with weights, whatever either is: which kernels, in which order, measured at each shape.

Few rows go through one kernel that does all of it. For more, the norm and the rounding in front are a kernel
of their own, and what follows the product is in our own kernel's registers, or in one kernel behind the
library's; there a gate is rounded, too, for the product that reads it. Which of these is fastest is timed
once for each shape and kept (``tuning``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch

from irloom.ir.elem import Quant
from irloom.ir.errors import RequestError

from .alike import alike
from .boxed_tiles import boxed_tiles
from .four_ways import four_ways, whole_tile
from .fragments import FORM, STRIP
from .kernels.activation import act_mul
from .kernels.boxes import has_boxes
from .kernels.eight_bits import Sweep
from .kernels.expand import expand
from .kernels.expand_four import expand_four
from .kernels.few import few_product, sheaves
from .kernels.few_four import Few, few_four_product
from .kernels.few_kernel import Sheaf
from .kernels.few_rows import Strip
from .kernels.finish import finish
from .kernels.form import Form
from .kernels.gemm_fp8 import has_scaled_product, scaled_product
from .kernels.large import matrix_product, same_memory
from .kernels.quantize import quantize
from .kernels.ring import Ring, ring_product
from .kernels.rows import rms_norm
from .kernels.small import small_product, strips
from .kernels.streamed import Stream, streamed_product
from .kernels.tiled import Tile, tiled_product
from .kernels.tiled_four import FourTile, tiled_four_product
from .kernels.tiles import power_of_two
from .kernels.wide import Wide, wide_product
from .product_tiles import MEDIUM, multiprocessors, tiles
from .quantized import Operand, Quantized, values_of, within
from .tuning import choose, settled
from .work import Workspace

SMALL = 16
"""Rows whose every number is timed by itself; of more, a gate is rounded by the product that makes it."""
ALIKE = 64
"""Rows that the tile suits which runs for any number of them, where rows must be alike."""
CHUNK = 4096
"""Rows at a time: more make no product faster, and what lies between kernels takes memory for so many."""
EXPANDED = 32 << 20
"""Bytes of a quantized weight that are made plain at a time: they stay in the L2 cache."""

Own = Tile | Stream | Ring | Wide | FourTile
Way = str | Strip | Sweep | Sheaf | Few | Own
"""A strip, a sweep or few: all in one kernel; a sheaf: all but rounding; ``Own``: our own product of more
rows; ``library``: cuBLAS; ``expand``: the same, with the weight made plain for it.
"""


def product(
    out: Operand,
    x: Operand,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    *,
    form: Form,
    work: Workspace,
) -> None:
    """``out`` [T, N] of ``x`` [T, K] and ``weight`` [N, K], gated [2 N, K], as ``form`` says, for any T.

    ``out`` may be ``residual``. The first run of a shape outside of a capture times the ways to do it.
    """
    whole = Product(out, x, weight, bias, residual, norm, form)
    for first in range(0, whole.rows, CHUNK):
        p = (whole.part(first, CHUNK) if whole.rows > CHUNK else whole).placed
        with work.lent():
            p.run(p.way, work)


@dataclass(frozen=True)
class Product:
    """One product on its operands."""

    out: Operand
    x: Operand
    weight: Operand
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    norm: torch.Tensor | None
    form: Form
    made: torch.dtype = torch.bfloat16
    """The element of a result before it is rounded, where no operand is plain."""

    @property
    def rows(self) -> int:
        """T."""
        return values_of(self.out).shape[0]

    def part(self, first: int, rows: int) -> Product:
        """That of some rows."""
        end = first + rows
        residual = None if self.residual is None else self.residual[first:end]
        return replace(self, out=_part(self.out, first, end), x=_part(self.x, first, end), residual=residual)

    @property
    def placed(self) -> Product:
        """What is rounded between two products, of more than ``SMALL`` rows, lies where ``within`` has it."""
        form, out, x = self.form, self.out, self.x
        if self.rows <= SMALL:
            return self
        if form.emitted and form.quant is not None and isinstance(x, torch.Tensor):
            x = within(x, form.quant)
        if form.emits is not None and isinstance(out, torch.Tensor):
            return replace(self, out=within(out, form.emits), x=x, made=out.dtype)
        return replace(self, x=x)

    @property
    def quant(self) -> Quant | None:
        """What the rows are rounded to, or have been."""
        return self.x.quant if isinstance(self.x, Quantized) else self.form.quant

    @property
    def element(self) -> torch.dtype:
        """What is between the kernels in: the element of whatever is plain."""
        given = self.x, self.out, self.residual, self.bias, self.norm
        return next((t.dtype for t in given if isinstance(t, torch.Tensor)), self.made)

    @property
    def key(self) -> tuple[object, ...]:
        """All that decides how long each way takes."""
        rows = self.rows if self.rows <= SMALL else _rung(self.rows)
        given = self.out, self.x, self.weight, self.bias, self.residual, self.norm
        return rows, *map(_kind, given), self.element, self.form, self._boxed

    @property
    def way(self) -> Way:
        """The fastest way, as far as that is known."""
        if alike():
            return self._alike
        key = self.key
        if known := settled("product", key):
            return known
        ways = self.ways
        last: Way | None = "library" if isinstance(ways[0], Ring) else None
        return choose("product", key, ways, Trial(self), heavy=self.rows > MEDIUM, last=last)

    @property
    def _alike(self) -> Way:
        """A tile that is the same for any number of rows, and sums whole rows of the weight."""
        if self.element == torch.float32 and not isinstance(self.weight, Quantized) and self.quant is None:
            return Tile(32, 16, 32, stages=2)
        if _lies_in_fragments(self.weight):
            four = whole_tile(ALIKE, self.x, self.weight, self.form)
            whole: list[Own] = [] if four is None else [four]
        else:
            columns = values_of(self.out).shape[1]
            some = tiles(ALIKE, columns, self.weight, self.quant, self.element, self.form.gated)
            whole = [t for t in some if t.split == 1]
        if whole:
            return whole[0]
        raise RequestError(
            f"cuda: no product of {self.element} with {self._scheme} is the same for any number of rows",
            hint="run without batch_invariant, or quantize to fp8 or int4",
        )

    @property
    def _scheme(self) -> str:
        """What the weight's entries are."""
        return (
            self.weight.quant.declaration() if isinstance(self.weight, Quantized) else str(self.weight.dtype)
        )

    @property
    def ways(self) -> list[Way]:
        """All that can be tried; the first stands where nothing is timed.

        Not the library's where there are rings: these begin before a clock that times them alone can see it.
        It is what is left where none of them runs.
        """
        if _lies_in_fragments(self.weight):
            return [*four_ways(self.out, self.x, self.weight, self.form), "expand"]
        form, own = self.form, self._own
        if own and isinstance(own[0], Ring):
            some = own
        elif not isinstance(self.weight, Quantized):
            some = ["library", *own]
        elif has_scaled_product(self.quant, self.weight):
            some = ["library", *own] if self._boxed else ["library", *own, "expand"]
        else:
            some = [*own, "expand"] if self.rows <= MEDIUM else ["expand", *own]
        whole = strips(self.out, self.x, self.weight, form)
        few = sheaves(self.out, self.x, self.weight, form)
        return [*whole, some[0]] if whole and self.rows == 1 else [*whole, *some, *few]

    @property
    def _own(self) -> list[Own]:
        """Tiles of our own products: where the copy engine can feed one, no others."""
        columns, gated, values = values_of(self.out).shape[1], self.form.gated, values_of(self.weight)
        if self._boxed:
            residual = self.residual is not None
            return [*boxed_tiles(self.rows, columns, values.shape[1], values.itemsize, gated, residual)]
        return [*tiles(self.rows, columns, self.weight, self.quant, self.element, gated)]

    @property
    def _boxed(self) -> bool:
        """Whether the copy engine can feed one: of plain matrices, or of fp8 with scales of whole rows."""
        out = self.out if isinstance(self.out, torch.Tensor) else None
        moved = values_of(self.x), values_of(self.weight), out
        if self.element == torch.float32 or not has_boxes(*moved):
            return False
        if isinstance(self.weight, Quantized):
            return self.weight.scales.shape[1] == 1 and has_scaled_product(self.quant, self.weight)
        return self.quant is None

    def run(self, way: Way, work: Workspace) -> None:
        """Launch it one way."""
        if isinstance(way, Strip | Sweep):
            assert isinstance(self.out, torch.Tensor) and isinstance(self.x, torch.Tensor)
            given = self.out, self.x, self.weight, self.bias, self.residual, self.norm
            small_product(*given, self.form, way)
        elif isinstance(way, Few):
            assert _lies_in_fragments(self.weight)
            assert isinstance(self.out, torch.Tensor) and isinstance(self.x, torch.Tensor)
            given = self.out, self.x, self.weight, self.bias, self.residual, self.norm
            few_four_product(*given, self.form, work, way)
        elif isinstance(way, Sheaf):
            self._few(way, work)
        elif isinstance(way, Own):
            self._own_product(self._prologue(work), way, work)
        else:
            self._library(self._prologue(work), way == "expand", work)

    def _prologue(self, work: Workspace) -> Operand:
        """``x``, normed and rounded where the form says so."""
        x, form = self.x, self.form
        if isinstance(x, Quantized) or (form.eps is None and form.quant is None):
            return x
        made = work.take(x.shape, x.dtype) if form.quant is None else _rounding(x.shape, form.quant, work)
        if form.eps is not None:
            rms_norm(made, x, self.norm, eps=form.eps)
        elif isinstance(made, Quantized):
            quantize(made, x)
        return made

    def _few(self, sheaf: Sheaf, work: Workspace) -> None:
        """The norm in our own kernel, unless what it makes is rounded."""
        x, norm, form = self.x, self.norm, self.form
        if form.quant is not None:
            x, norm, form = self._prologue(work), None, replace(form, eps=None, quant=None)
        assert isinstance(self.out, torch.Tensor)
        few_product(self.out, x, self.weight, self.bias, self.residual, norm, form, sheaf)

    def _own_product(self, x: Operand, tile: Own, work: Workspace) -> None:
        """Our own kernel, which finishes what it sums."""
        to = self._plain(work)
        given = to, x, self.weight, self.bias, self.residual, self.form
        if isinstance(tile, Wide):
            wide_product(*given, tile, multiprocessors())
        elif isinstance(tile, Stream):
            streamed_product(*given, work, tile)
        elif isinstance(tile, Ring):
            ring_product(*given, work, tile)
        elif isinstance(tile, FourTile):
            assert _lies_in_fragments(self.weight) and isinstance(x, torch.Tensor)
            tiled_four_product(to, x, self.weight, self.bias, self.residual, self.form, work, tile)
        else:
            tiled_product(*given, work, tile)
        if isinstance(self.out, Quantized):
            quantize(self.out, to)

    def _library(self, x: Operand, expanded: bool, work: Workspace) -> None:
        """A library's product, and what it leaves to do."""
        weight, bias, residual = self.weight, self.bias, self.residual
        takes = not isinstance(weight, Quantized) and bias is None
        direct = self._simple and (residual is None or takes) and isinstance(self.out, torch.Tensor)
        fits = values_of(self.out).is_contiguous() and values_of(self.out).dtype == self.element
        wide = self.rows, _height(weight)
        sums = values_of(self.out) if direct and fits else work.take(wide, self.element)
        if expanded:
            assert isinstance(weight, Quantized)
            _expanded_product(sums, x, weight, work)
        elif isinstance(x, Quantized):
            assert isinstance(weight, Quantized)
            scaled_product(sums, x, weight, bias, work)
            bias = None
        else:
            assert isinstance(weight, torch.Tensor)
            added = residual if self._simple and takes else None
            matrix_product(sums, x, weight, bias, added)
            bias, residual = None, None if added is not None else residual
        self._epilogue(sums, bias, residual, work)

    @property
    def _simple(self) -> bool:
        """Whether at most a bias and a residual follow."""
        f = self.form
        return f.act is None and not f.gated and f.scale == 1.0 and f.softcap is None

    def _epilogue(
        self, sums: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, work: Workspace
    ) -> None:
        f, left = self.form, bias is not None or residual is not None
        if sums is self.out and not left:
            return
        if f.gated and f.act is not None and not left and f.scale == 1.0 and f.softcap is None:
            half = sums.shape[1] // 2
            act_mul(self.out, sums[:, :half], sums[:, half:], act=f.act)
            return
        to = self._plain(work)
        finish(to, sums, bias, residual, act=f.act, gated=f.gated, scale=f.scale, softcap=f.softcap)
        if isinstance(self.out, Quantized):
            quantize(self.out, to)

    def _plain(self, work: Workspace) -> torch.Tensor:
        """Where the result is made before it is rounded."""
        return work.take(self.out.values.shape, self.element) if isinstance(self.out, Quantized) else self.out


class Trial:
    """Runs a product in each way. What it writes is its result, which is made after: but where that is the
    residual, memory of its own.
    """

    def __init__(self, p: Product) -> None:
        if p.residual is not None and same_memory(p.residual, values_of(p.out)):
            out = torch.empty_like(p.residual)
            p = replace(p, out=out, residual=out)
        self.product = p
        self.works: dict[Way, Workspace] = {}

    def __call__(self, way: Way) -> None:
        if way not in self.works:
            self.works[way] = Workspace(values_of(self.product.out).device)
        self.works[way].reset()
        self.product.run(way, self.works[way])


def _expanded_product(out: torch.Tensor, x: Operand, weight: Quantized, work: Workspace) -> None:
    """``x @ weight.T`` of plain matrices, for some rows of the weight after others."""
    k = x.values.shape[1] if isinstance(x, Quantized) else x.shape[1]
    if isinstance(x, Quantized):
        plain = work.take((out.shape[0], k), out.dtype)
        expand(plain, x)
        x = plain
    n = out.shape[1]
    step = min(n, max(128, EXPANDED // (k * out.element_size()) // 128 * 128))
    some = work.take((step, k), out.dtype)
    for first in range(0, n, step):
        part = some[: n - first]
        (expand_four if _lies_in_fragments(weight) else expand)(part, weight, first)
        matrix_product(out[:, first : first + step], x, part)


def _rounding(dims: Sequence[int], quant: Quant, work: Workspace) -> Quantized:
    """Memory for rows rounded to ``quant``, with the scales of consecutive rows side by side."""
    rows, k = dims
    scales = work.take((k // (quant.group or k), rows), quant.scale.torch).t()
    return Quantized(work.take((rows, k), quant.base.torch), scales, None, quant)


def _part(x: Operand, first: int, end: int) -> Operand:
    if isinstance(x, torch.Tensor):
        return x[first:end]
    return replace(x, values=x.values[first:end], scales=x.scales[first:end])


def _height(weight: Operand) -> int:
    """Rows of a weight."""
    return values_of(weight).shape[0] * (STRIP if _lies_in_fragments(weight) else 1)


def _lies_in_fragments(x: Operand) -> TypeGuard[Quantized]:
    return isinstance(x, Quantized) and x.form == FORM


def _kind(x: Operand | None) -> object:
    """The dims but for the rows' number, and the element."""
    if isinstance(x, Quantized):
        return x.quant, x.form, *x.values.shape[1:]
    return x if x is None else (x.dtype, *x.shape[1:])


def _rung(rows: int) -> int:
    """``rows`` rounded up to a power of two; up to ``MEDIUM`` to one and a half times one, too."""
    power = power_of_two(rows)
    return power * 3 // 4 if rows <= power * 3 // 4 and power <= MEDIUM else power
