"""The C++ around an op's own kernel: parameters that follow from the op, the file, a call from Python."""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.backends.cpu import toolchain
from irloom.backends.cpu.step import Rows
from irloom.ir.errors import KernelError
from irloom.ir.op import Op
from irloom.ir.signature import Axis, Term

if TYPE_CHECKING:
    from irloom.backends.cpu.native import Kernels

C_ELEMS = {"f32": "float", "i32": "int32_t", "i64": "int64_t", "bool": "bool"}
C_ATTRS = {"float": "float", "int": "int64_t", "bool": "bool", "str": "const char*"}
CTYPES = {"float": ctypes.c_float, "int": ctypes.c_int64, "bool": ctypes.c_bool, "str": ctypes.c_char_p}


@dataclass(frozen=True)
class Tensor:
    """An operand or a result as a kernel takes it; ``width`` are the dims of a row of it."""

    name: str
    elem: str
    rows: bool
    width: tuple[str, ...] = ()
    made: bool = False

    @property
    def cpp(self) -> str:
        """The parameter."""
        of = ("" if self.made else "const ") + C_ELEMS[self.elem]
        return f"Rows<{of}> {self.name}" if self.rows else f"{of}* {self.name}"


@dataclass(frozen=True)
class Attribute:
    """An attribute as a kernel takes it: ``float``, ``int``, ``bool`` or ``str``."""

    name: str
    kind: str
    optional: bool

    @property
    def cpp(self) -> str:
        """The parameter."""
        c = C_ATTRS[self.kind]
        return f"std::optional<{c}> {self.name}" if self.optional else f"{c} {self.name}"


@dataclass(frozen=True)
class Head:
    """What a kernel takes, in this order, with ``rows`` in front of the sizes.

    ``row`` is the name of the rows' dim; ``entries`` whether that is all there is, so that a row has as many
    entries as its other dims make together.
    """

    name: str
    tensors: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    row: str
    entries: bool

    @property
    def cpp(self) -> str:
        """The head of the function."""
        sizes = [f"int64_t {name}" for name in ("rows", *self.sizes)]
        given = [*(t.cpp for t in self.tensors), *sizes, *(a.cpp for a in self.attributes)]
        return f'extern "C" void {self.name}({", ".join(given)})'

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        given = [t.name for t in self.tensors], ["rows"], self.sizes, [a.name for a in self.attributes]
        return [name for part in given for name in part]


def head(op: Op, elems: dict[str, str]) -> Head:
    """What the kernel of ``op`` takes; ``KernelError`` where the convention has no words for it."""
    sig = op.signature
    if op.variadic or op.carried or any(t.axes is None for t in (*sig.ins, *sig.outs)):
        raise _refused(op, "it has operands or results whose dims the signature does not tell")
    row = _row(op, sig.outs)
    outs = ["out"] if len(sig.outs) == 1 else [f"out{k}" for k in range(len(sig.outs))]
    tensors = [
        *(_tensor(op, name, t, row, elems, made=False) for name, t in zip(op.operands, sig.ins, strict=True)),
        *(_tensor(op, name, t, row, elems, made=True) for name, t in zip(outs, sig.outs, strict=True)),
    ]
    if unknown := set(elems) - {t.name for t in tensors}:
        raise _refused(op, f"there is no operand or result `{min(unknown)}`")
    factors = [f for t in (*sig.ins, *sig.outs) for a in t.axes or () for f in a.factors]
    entries = set(factors) == {row} and any(a.variadic for t in sig.outs for a in t.axes or ())
    sizes = tuple(f for f in dict.fromkeys(factors) if f != row or entries)
    attributes = tuple(_attribute(op, name) for name in op.attrs if name not in sizes)
    made = Head(op.name, tuple(tensors), sizes, attributes, row, entries)
    if twice := [name for name in made.names if made.names.count(name) > 1]:
        raise _refused(op, f"two of its parameters would be called `{twice[0]}`")
    return made


def _row(op: Op, outs: tuple[Term, ...]) -> str:
    """The name of the dim that counts rows: the first of every result."""
    first = {t.axes[0].factors if t.axes else () for t in outs}
    if len(first) != 1 or len(row := first.pop()) != 1:
        raise _refused(op, "its results have no first dim in common")
    return row[0]


def _tensor(op: Op, name: str, t: Term, row: str, elems: dict[str, str], *, made: bool) -> Tensor:
    axes = t.axes or ()
    by_rows = bool(axes) and axes[0].factors == (row,)
    inner: tuple[Axis, ...] = axes[1:] if by_rows else axes
    if any(a.variadic or row in a.factors for a in inner):
        raise _refused(op, f"a dim of `{name}` that is not its first is `{row}`, or any number of dims")
    elem = elems.get(name, "f32")
    if elem not in C_ELEMS:
        raise _refused(op, f"`{name}` is {elem}, and a kernel takes {', '.join(C_ELEMS)}")
    return Tensor(name, elem, by_rows, tuple(f for a in inner for f in a.factors), made)


def _attribute(op: Op, name: str) -> Attribute:
    p = inspect.signature(op.reference).parameters[name]
    said = inspect.formatannotation(p.annotation) if p.annotation is not p.empty else ""
    kinds = {k.strip("'\" ") for k in said.split("|")} if said else {type(p.default).__name__}
    kinds = {"None" if k == "NoneType" else k for k in kinds}
    (kind, *more) = sorted(kinds - {"None"}) or [""]
    if more or kind not in C_ATTRS:
        raise _refused(op, f"attribute `{name}` is {said or kind or 'None'}, not one of {', '.join(C_ATTRS)}")
    return Attribute(name, kind, "None" in kinds)


def _refused(op: Op, why: str) -> KernelError:
    hint = "a lowering of its own can: see `irloom.backends.cpu.lowers`"
    return KernelError(f"op {op.name}: no C++ kernel can be called for it: {why}", hint=hint).at(op.place)


def whole(h: Head, source: str, place: str) -> str:
    """The file that is compiled: the head, what the author wrote, and the split of rows between threads.

    ``source`` is a body, or with ``place`` ending in ``.cpp`` the function; ``place`` is ``file:line``.
    """
    file, _, line = place.rpartition(":")
    told = f'#line {line} "{file}"\n{source}\n#line 1 "irloom"\n'
    written = told if file.endswith(".cpp") else f"{h.cpp} {{\n{told}}}\n"
    given = [
        *(f"{C_ELEMS[t.elem]}* {t.name}" + f", int64_t ld_{t.name}" * t.rows for t in h.tensors),
        *(f"int64_t {name}" for name in ("rows", "parts", *h.sizes)),
        *(f"bool has_{a.name}, " * a.optional + f"{C_ATTRS[a.kind]} {a.name}" for a in h.attributes),
    ]
    passed = [
        *(_passed(t, entries=h.entries) for t in h.tensors),
        *("t1 - t0", *h.sizes),
        *(_optional(a) if a.optional else a.name for a in h.attributes),
    ]
    return f"""#include "extern.h"
{h.cpp};
{written}extern "C" void call_{h.name}({", ".join(given)}) {{
  const int64_t grain = 1 + 8192 / ({" * ".join(("parts", *h.sizes))} + 1);
  irl::parallel_range(rows, grain, [&](int64_t t0, int64_t t1) {{
    for (int64_t p = 0; p < parts; p++) {h.name}({", ".join(passed)});
  }});
}}
"""


def _passed(t: Tensor, *, entries: bool) -> str:
    if not t.rows:
        return t.name
    of = ("" if t.made else "const ") + C_ELEMS[t.elem]
    step = "0" if entries else " * ".join(("p", *t.width))
    return f"Rows<{of}>{{{t.name}, ld_{t.name}}}.from(t0, {step})"


def _optional(a: Attribute) -> str:
    return f"has_{a.name} ? std::optional<{C_ATTRS[a.kind]}>({a.name}) : std::nullopt"


def compiled(kernels: Kernels, h: Head, source: str, place: str) -> Callable[..., None]:
    """The kernel as programs call it, compiled if this machine has not done so, or ``KernelError``.

    It takes operands and results (``Rows``, tensors, None for what is absent), then sizes and attributes by
    name; ``parts`` is how many rows follow each other within what the caller counts as one.
    """
    try:
        library = kernels.compile_extra(whole(h, source, place))
    except toolchain.CompileError as error:
        raise _explained(h, str(error), place) from None
    except OSError:  # it calls what nobody defines: itself, when the source has a function of another head
        raise KernelError(
            f"op {h.name}: its C++ kernel defines another function, or calls one that there is not",
            hint=f"it has to be {h.cpp}",
        ).at(f"at {place}") from None
    function = library[f"call_{h.name}"]
    function.argtypes = list(_ctypes(h))
    function.restype = None

    def call(*given: Any, parts: int = 1, **numbers: Any) -> None:
        flat: list[Any] = []
        for t, x in zip(h.tensors, given, strict=True):
            at = 0 if x is None else x.ptr if isinstance(x, Rows) else x.data_ptr()
            flat += [at, x.stride if x is not None else 0] if t.rows else [at]
        flat += [given[-1].count.now, parts, *(numbers[name] for name in h.sizes)]
        for a in h.attributes:
            value = numbers[a.name]
            flat += [value is not None] if a.optional else []
            flat.append(value.encode() if isinstance(value, str) else value or 0 if a.optional else value)
        function(*flat)

    return call


def _ctypes(h: Head) -> Iterator[Any]:
    for t in h.tensors:
        yield ctypes.c_void_p
        if t.rows:
            yield ctypes.c_int64
    for _ in ("rows", "parts", *h.sizes):
        yield ctypes.c_int64
    for a in h.attributes:
        if a.optional:
            yield ctypes.c_bool
        yield CTYPES[a.kind]


def _explained(h: Head, said: str, place: str) -> KernelError:
    """The compiler's first error, at the line that the author wrote."""
    first = re.search(r"^(?P<at>.+?:\d+)(?::\d+)?: (?:fatal )?error: (?P<what>.*)$", said, re.MULTILINE)
    what, at = (first["what"], first["at"]) if first else (said.strip().splitlines()[-1], place)
    return KernelError(
        f"op {h.name}: its C++ kernel does not compile: {what}", hint=f"its head is {h.cpp}"
    ).at(f"at {at}")
