"""A lowered program: its text, what it binds, and which handler lowers which op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from irloom.ir.dims import Dim
from irloom.ir.elem import Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Func, Module, Node, Param, Value

if TYPE_CHECKING:
    from irloom.backends.cpu.lower import Lowering

INDENT = "    "


@dataclass(frozen=True)
class Bound:
    """A weight in a form: ``packed`` for products, ``vector`` for rows, ``tensor`` for bodies.

    ``layers`` are the indices it is bound for, None when all share it; ``bias`` goes with a packed weight.
    ``bytes`` is the name under which its entries are stored: weights that differ in their bias share them.
    """

    name: str
    form: str
    param: Param
    layers: tuple[int, ...] | None
    bytes: str
    bias: Param | None = None


@dataclass
class Program:
    """A lowered module: text, weights, buffers, C++ of generated kernels, and what fell back how often.

    ``extern`` are ops whose own kernels it calls (see ``extern``), ``declined`` why one did not fit,
    the first time for each op.
    """

    text: str = ""
    weights: dict[str, Bound] = field(default_factory=dict[str, Bound])
    buffers: dict[str, tuple[Elem, Dim]] = field(default_factory=dict[str, tuple[Elem, Dim]])
    kernels: dict[str, str] = field(default_factory=dict[str, str])
    fallbacks: dict[str, int] = field(default_factory=dict[str, int])
    extern: set[str] = field(default_factory=set[str])
    declined: dict[str, str] = field(default_factory=dict[str, str])


Handler = Callable[["Lowering", Node], bool]
LOWERINGS: dict[str, Handler] = {}


def lowers(op: str) -> Callable[[Handler], Handler]:
    """Register how an op becomes kernel calls; a handler returns False to leave a node to its body."""

    def wrap(fn: Handler) -> Handler:
        if op in LOWERINGS:
            raise IRError(f"cpu: two lowerings of {op}")
        LOWERINGS[op] = fn
        return fn

    return wrap


@dataclass
class Shared:
    """What the functions of a module have in common: the layers each is called for, the rotary tables."""

    m: Module
    tables: dict[str, str] = field(default_factory=dict[str, str])

    def layers(self, func: str) -> tuple[int, ...] | None:
        """The layer indices a function is called with; None for one without."""
        at = [layer for c, layer, _ in self.m.calls() if c.callee == func]
        return tuple(dict.fromkeys(i for i in at if i is not None)) or None

    def is_positions(self, func: Func, v: Value) -> bool:
        """Whether a value is the tokens' positions: made by the op, or given as such by every caller."""
        made = next((n for n in func.nodes if v in n.results), None)
        if made is not None:
            return made.op.name == "positions"
        if func.name == "main" or v not in func.data:
            return False
        main, at = self.m.main, [p.name for p in func.data].index(v.name)
        given = [c.args[at] for c, _, _ in self.m.calls() if c.callee == func.name]
        return all(self.is_positions(main, a) for a in given)

    def rope_table(self, text: str) -> str:
        """The name of a table of cosines and sines, made once per step."""
        return self.tables.setdefault(text, f"turns{len(self.tables)}")
