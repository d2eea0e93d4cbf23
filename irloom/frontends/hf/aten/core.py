"""The table of translations from the library's ops to IR ops, and what a translation may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irloom.frontends.hf.views import Operand, View, aligned, viewed
from irloom.frontends.store import takes_part
from irloom.ir.dims import Dim, sym, symbols
from irloom.ir.elem import Elem
from irloom.ir.errors import IRError, TraceError
from irloom.ir.graph import Value
from irloom.ir.op import Op

Translator = Callable[..., Any]
TOKENS, PAST = sym("T"), sym("P")
"""Tokens of this step, and tokens in the cache before it."""

TRANSLATORS: dict[str, Translator] = {}
"""Translator by op name, such as ``aten.add.Tensor``. It gets the op's arguments, with tensors as ``View``;
one that has a keyword ``seqs`` also gets how tokens belong to sequences."""


@dataclass(frozen=True)
class Mask:
    """An attention mask that is still a rule over positions: ``causal``, ``sliding`` or ``chunked``, and its
    size.
    """

    kind: str
    size: int


@dataclass(frozen=True)
class Stored:
    """Keys or values as an attention sees them after a cache write: this step's, with the cached ones
    before.
    """

    view: View
    layer: int


def translates(*names: str) -> Callable[[Translator], Translator]:
    """Register a translator for the overloads ``names``."""

    def wrap(fn: Translator) -> Translator:
        for name in names:
            if name in TRANSLATORS:
                raise IRError(f"{name} has two translators: {TRANSLATORS[name]} and {fn}")
            TRANSLATORS[name] = fn
        takes_part(fn)
        return fn

    return wrap


def elementwise(op: Op, *operands: Operand, **attrs: Any) -> View:
    """Apply an elementwise op with the library's broadcasting."""
    values, dims, rank = aligned(operands)
    return viewed(op(*values, **attrs), dims, rank)


def tensor(x: Any, what: str = "operand") -> View:
    """``x`` as a tensor, or an error that says what it is instead."""
    match x:
        case View():
            return x
        case Mask():
            raise TraceError(
                f"{what} is an attention mask, which exists only inside attention",
                hint="the model computes with its mask outside of the library's attention interface",
            )
        case Stored():
            raise TraceError(
                f"{what} is the cache of layer {x.layer} as a whole, which only attention may read",
                hint="the model computes with cached keys outside of the library's attention interface",
            )
        case _:
            raise TraceError(f"{what} is {x!r}, not a tensor")


def own_tokens(view: View, dim: int, doing: str) -> int:
    """``dim`` counted from the front; an error where it is the token dim, which holds several sequences."""
    dim = view.dim(dim)
    if symbols(view.dims[dim]):
        raise TraceError(
            f"{doing} over dim {dim} of {view.value.type} mixes tokens of different sequences,"
            " which only attention and recurrent ops may"
        )
    return dim


def static(dim: Dim | float, what: str) -> int:
    """A dim that must be a plain integer."""
    if not isinstance(dim, int):
        raise TraceError(f"{what} is {dim}, which is not known when tracing")
    return dim


def as_elem(view: View, elem: Elem) -> View:
    """``view`` in another element; integer positions stay i32, whatever width the library gives them."""
    from irloom.ir import ops

    now = view.value.type.elem
    if now == elem or (isinstance(now, Elem) and now.kind == elem.kind == "int" and now.bits >= 32):
        return view
    return View(ops.cast(view.value, to=elem), view.order)


def on_last(view: View, dim: int, apply: Callable[[Value], Value], doing: str) -> View:
    """Apply an op that works along the last dim of the IR value."""
    value, dims = view.with_last(own_tokens(view, dim, doing))
    return viewed(apply(value), dims, view.rank)


def rows(x: Any) -> Any:
    """A tensor without the batch dim, the token dim first."""
    x = tensor(x)
    return x.arranged(range(1, x.rank))
