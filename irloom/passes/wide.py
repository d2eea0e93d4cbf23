"""Arithmetic in f32 on what is stored in fewer bits, as the bodies of ops do it: rounded once, at the end."""

from __future__ import annotations

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.graph import Value
from irloom.ir.ops import cast

F32 = ELEMS["f32"]


def wide(x: Value) -> Value:
    """A value in f32 where it has fewer bits or is no float."""
    plain = x.type.plain
    return x if plain.kind == "float" and plain.bits >= 32 else cast(x, to=F32)


def in_f32(x: Value) -> Value:
    """A value in f32."""
    return to_elem(x, F32)


def to_elem(x: Value, elem: Elem) -> Value:
    """A value in ``elem``, as it is where it has that."""
    return x if x.type.elem == elem else cast(x, to=elem)


def rounded_as(y: Value, x: Value) -> Value:
    """``y``, computed of ``x``, in the element of ``x`` again; of integers it stays a float."""
    return to_elem(y, x.type.plain) if x.type.plain.kind == "float" else y
