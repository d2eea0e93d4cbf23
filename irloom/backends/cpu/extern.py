'''An op's own C++ kernel: what somebody outside of irloom writes to have an op run fast on the CPU.

    @kernel("""
    for (int64_t t = 0; t < rows; t++)
      for (int64_t i = 0; i < n; i++) {
        const float a = x[t][i] > floor ? x[t][i] : floor;
        out[t][i] = a * a * gate[t][i];
      }
    """)
    @op("*b n, *b n -> *b n")
    def square_gate(x, gate, *, floor: float = 0.0):
        """``max(x, floor) ** 2 * gate``, in one pass over memory."""
        return x.clamp(min=floor).square() * gate

The text is the body of a function whose head follows from the op; ``irloom op square_gate`` prints it. A name
that ends with ``.cpp`` is a file beside the one that says so, with the whole function in it:

    extern "C" void square_gate(Rows<const float> x, Rows<const float> gate, Rows<float> out,
                                int64_t rows, int64_t n, float floor) { ... }

**The convention.** A kernel computes ``rows`` rows of its results; a row is what the first dim of the results
counts, be that ``*b`` or a name. Its parameters are

- the operands in order. One whose dims start with that dim comes as ``Rows<const float>``: ``x[t]`` points
  at the entries of row ``t``, which lie together. Any other, mostly a weight, is a ``const float*`` to all
  of its entries. An optional operand that is absent is false, or a null pointer;
- the results, ``Rows<float> out``; several are ``out0``, ``out1``, ... They overlap no operand;
- ``rows``, then each other dim of the signature as ``int64_t``, in the order in which it names them (factors
  of a product each by itself), 0 for one that only an absent operand has. Where every dim is ``*b`` (or
  ``~b``), ``b`` is how many entries a row has;
- the attributes: ``float``, ``int64_t``, ``bool`` or ``const char*``, ``std::optional`` of that where they
  may be None. An attribute that is a dim of the signature comes once, as that.

Tensors are f32; another element is said by name: ``kernel("pick.cpp", index="i32", out="i32")``. Weights come
as f32 whatever they are stored in. irloom splits the rows between its threads and calls the kernel for each
part, so it starts no threads itself, and must give a row the same bits whatever other rows there are.

A node that does not fit (another element, a broadcast operand, rows of unknown width) runs the op's body, and
``irloom explain`` says why; so does everything on a machine without a C++ compiler. What needs more than this
is a lowering of its own: see ``lowers``.
'''

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irloom.backends.cpu import extern_source
from irloom.backends.cpu.extern_source import Head, Tensor, head
from irloom.backends.cpu.place import by_rows
from irloom.backends.cpu.program import INDENT, LOWERINGS
from irloom.backends.cpu.program import lowers as register
from irloom.ir.dims import product
from irloom.ir.elem import Elem, Quant
from irloom.ir.errors import IrloomError, KernelError
from irloom.ir.graph import Arg, Node, Value
from irloom.ir.op import Op
from irloom.ir.plugins import line_of, told
from irloom.ir.show import show_attr

if TYPE_CHECKING:
    from irloom.backends.cpu.lower import Lowering
    from irloom.backends.cpu.native import Kernels
    from irloom.backends.cpu.program import Handler

KINDS = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,)}


@dataclass(frozen=True)
class Kernel:
    """The C++ kernel of an op: what its author wrote, and at which ``file:line``."""

    op: Op
    head: Head
    source: str
    place: str

    def lower(self, f: Lowering, n: Node) -> bool:
        """Emit a call; False, with the reason in the program, where the node does not fit."""
        if why := self._misfit(f, n):
            return f.decline(n, why)
        for r in n.results:
            f.place(r)
        numbers = {**self._sizes(n), **{a.name: n.attrs[a.name] for a in self.head.attributes}}
        parts = 1 if self.head.entries else product(self._lead(n)[1:])
        if parts != 1:
            numbers["parts"] = parts
        tensors = [*self._operands(n), *n.results]
        given = [self._given(f, t, a) for t, a in zip(self.head.tensors, tensors, strict=True)]
        said = [*given, *(f"{name}={show_attr(v)}" for name, v in numbers.items())]
        where = f"  # {n.loc}" if n.loc else ""
        f.lines.append(f"{INDENT}kernels.{self.op.name}({', '.join(said)}){where}")
        f.program.extern.add(self.op.name)
        return True

    def _operands(self, n: Node) -> list[Arg]:
        return [*n.args, *[None] * (len(self.op.operands) - len(n.args))]

    def _given(self, f: Lowering, t: Tensor, a: Arg) -> str:
        return f.weight(a, "vector") if a is None or (f.is_weight(a) and not t.rows) else f.ref(a)

    def _lead(self, n: Node) -> tuple[Any, ...]:
        """The dims of the first result that count rows."""
        axes, dims = self.op.signature.outs[0].axes, n.results[0].type.dims
        return dims[: len(dims) - len(axes or ()) + 1]

    def _sizes(self, n: Node) -> dict[str, Any]:
        if self.head.entries:
            return {self.head.row: product(n.results[0].type.dims[1:])}
        operands = [a.type if isinstance(a, Value) else a for a in self._operands(n)]
        known = self.op.bind(operands, n.attrs).size
        return {name: known.get(name, 0) for name in self.head.sizes}

    def _misfit(self, f: Lowering, n: Node) -> str | None:
        """Why the convention has no words for this node."""
        tensors = [*self._operands(n), *n.results]
        for t, a in zip(self.head.tensors, tensors, strict=True):
            if a is not None and (why := self._unfit(f, n, t, a)):
                return f"`{t.name}` is {a.type if isinstance(a, Value) else a}: {why}"
        for a in self.head.attributes:
            value = n.attrs[a.name]
            if not (value is None and a.optional) and not isinstance(value, KINDS[a.kind]):
                return f"attribute `{a.name}` is {show_attr(value)}, not of type {a.kind}"
        open_ = [name for name, size in self._sizes(n).items() if not isinstance(size, int)]
        return f"dim `{open_[0]}` is not a number" if open_ else None

    def _unfit(self, f: Lowering, n: Node, t: Tensor, a: Arg) -> str | None:
        if not isinstance(a, Value):
            return "a kernel takes tensors"
        if _held(a, weight=f.is_weight(a)) != t.elem:
            return f"the kernel takes {t.elem}"
        if not t.rows:
            whole = f.is_weight(a) or (a in f.places and f.places[a].whole)
            return None if whole and all(isinstance(d, int) for d in a.type.dims) else "it lies apart"
        if f.is_weight(a) or not by_rows(a.type.dims):
            return "it has no row for each token or sequence"
        if self.head.entries and a.type.dims != n.results[0].type.dims:
            return "a kernel takes rows as long as those of the result"
        return None


def _held(v: Value, *, weight: bool) -> str:
    """The name of the element that a value is held in: weights of floats are made f32."""
    if weight and (isinstance(v.type.elem, Quant) or v.type.plain.kind == "float"):
        return "f32"
    return v.type.elem.name if isinstance(v.type.elem, Elem) else str(v.type.elem)


KERNELS: dict[str, Kernel] = {}
"""By name of the op; written by ``kernel``."""


def kernel(source: str | Path, **elems: str) -> Callable[[Op], Op]:
    """Give an op a C++ kernel on the CPU target; see the text at the top of this file.

    ``source`` is the body of the function, or a ``.cpp`` file beside the caller; ``elems`` names the elements
    of operands and results that are not f32. ``KernelError`` when the op cannot have one, or has one.
    """
    caller = sys._getframe(1)
    text, place = _read(source, Path(caller.f_code.co_filename), caller.f_lineno)

    def wrap(op: Op) -> Op:
        made = Kernel(op, head(op, elems), text, place)
        _vacant(op.name)
        register(op.name)(made.lower)
        KERNELS[op.name] = made
        return op

    return wrap


def lowers(op: Op | str) -> Callable[[Handler], Handler]:
    """Say how an op becomes calls in a program of the CPU target, with all that irloom's own ops can do.

    The handler gets the ``Lowering`` of a function and a ``Node``. To leave a node to its body give False,
    best by ``return f.decline(n, "why")``:

        @lowers(half)
        def lower_half(f: Lowering, n: Node) -> bool:
            f.place(n.result)
            f.call("kernels.scaled", n.args[0], n.result, n=8, by=0.5, loc=n.loc)
            f.program.extern.add("scaled")
            return True

    ``irloom.backends.cpu.lowerings`` has examples, ``irloom.backends.cpu.calls`` what a program may call
    beside the kernels of ``kernel``. ``KernelError`` when the op has a lowering already.
    """
    name = op if isinstance(op, str) else op.name
    _vacant(name)

    def wrap(handler: Handler) -> Handler:
        def lower(f: Lowering, n: Node) -> bool:
            try:
                return handler(f, n)
            except IrloomError:
                raise
            except Exception as error:
                made = KernelError(f"op {name}: its lowering for cpu raised {told(error)}")
                raise made.at(f"in {f.func.name}.{n.results[0].name}").at(f"at {line_of(error)}") from error

        register(name)(lower)
        return handler

    return wrap


def _vacant(name: str) -> None:
    """``KernelError`` when an op has a lowering already, be it irloom's own."""
    from irloom.backends.cpu.lower import own_lowerings

    own_lowerings()
    if name in LOWERINGS:
        where = KERNELS[name].place if name in KERNELS else LOWERINGS[name].__module__
        raise KernelError(f"op {name} has a lowering for cpu already: in {where}")


def _read(source: str | Path, caller: Path, line: int) -> tuple[str, str]:
    """The text of a kernel, and the ``file:line`` it starts at."""
    if not str(source).endswith(".cpp"):
        text = str(source)
        python = caller.read_text(encoding="utf-8") if caller.is_file() else ""
        at = python.find(text)
        return text, f"{caller}:{python.count(chr(10), 0, at) + 1 if at >= 0 else line}"
    path = caller.parent / source
    if not path.is_file():
        raise KernelError(f"{path}: no such file", hint="the name is read beside the file that says it")
    return path.read_text(encoding="utf-8"), f"{path}:1"


def extern_calls(kernels: Kernels, names: Iterable[str]) -> dict[str, Callable[..., None]]:
    """The kernels of these ops as a program calls them, compiled where this machine has not done so."""
    found = {name: KERNELS[name] for name in sorted(names)}
    return {name: extern_source.compiled(kernels, k.head, k.source, k.place) for name, k in found.items()}
