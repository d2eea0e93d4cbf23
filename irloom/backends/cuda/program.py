"""A lowered program: for each function the launches of kernels that it comes to, as data that prints as text.

Values stay those of the module. A launch names a launcher of ``kernels``, what it writes, and what it is
given; an op without a kernel is a launch of its reference body.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

from irloom.ir.elem import SEQS, Cached, Elem, Quant
from irloom.ir.graph import Arg, Call, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.show import show_attr

INDENT = "    "
BODY = "body"
"""The kernel of a launch that runs a node's reference body in torch."""


@dataclass(frozen=True, eq=False)
class Launch:
    """A call of the launcher ``kernel``: it writes ``results`` from ``args``.

    ``attrs`` are its keyword arguments; what it is ``given`` beside them belongs to the engine: ``work``,
    scratch memory, or ``step``, the arrays of the step. ``node`` is what it is for (the first of several
    that were folded), ``why`` why that has no kernel. Its result may lie where the operand ``over`` does, if
    nothing reads that later.
    """

    kernel: str
    results: tuple[Value, ...]
    args: tuple[Arg, ...]
    node: Node
    attrs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    given: tuple[str, ...] = ()
    why: str = ""
    over: Arg = None

    @property
    def values(self) -> list[Value]:
        """The operands that are values."""
        return [a for a in self.args if isinstance(a, Value)]

    def __str__(self) -> str:
        results = [r.name for r in self.results if not isinstance(r.type.elem, Cached)]
        given = [a.name if isinstance(a, Value) else show_attr(a) for a in self.args]
        attrs = [f"{k}={_shown(v)}" for k, v in self.attrs.items() if v is not None]
        attrs += [f"over={self.over.name}"] if isinstance(self.over, Value) else []
        name = f"{BODY}.{self.node.op.name}" if self.kernel == BODY else self.kernel
        said = "; ".join(filter(None, [self.node.loc, self.why]))
        return f"{name}({', '.join([*results, *given, *attrs])})" + (f"  # {said}" if said else "")


@dataclass(frozen=True, eq=False)
class View:
    """Results that are other views of the memory of ``x``: a ``reshape``, ``split`` or ``slice``."""

    node: Node
    x: Value

    @property
    def results(self) -> tuple[Value, ...]:
        return tuple(self.node.results)

    @property
    def values(self) -> list[Value]:
        return [self.x]

    def __str__(self) -> str:
        names = ", ".join(r.name for r in self.results)
        attrs = ", ".join(f"{k}={show_attr(v)}" for k, v in self.node.attrs.items())
        return f"{names} = {self.node.op.name}({self.x.name}, {attrs})"


@dataclass(frozen=True, eq=False)
class Same:
    """A value that has the memory of another, because what would have made it was folded elsewhere."""

    result: Value
    x: Value

    @property
    def results(self) -> tuple[Value, ...]:
        return (self.result,)

    @property
    def values(self) -> list[Value]:
        return [self.x]

    def __str__(self) -> str:
        return f"{self.result.name} = {self.x.name}"


Step = Launch | View | Same | Call | Loop


@dataclass(frozen=True, eq=False)
class Function:
    """A function: its parameters, its steps in order, what it returns."""

    name: str
    params: Sequence[Param]
    steps: Sequence[Step]
    returns: Sequence[Value]

    @cached_property
    def ends(self) -> list[list[Value]]:
        """For each step the values with memory of their own that nothing reads after it."""
        return last_uses(self.steps, self.returns, self.roots)

    @cached_property
    def roots(self) -> dict[Value, Value]:
        """For each view the value whose memory it sees."""
        root: dict[Value, Value] = {}
        for s in self.steps:
            if isinstance(s, (View, Same)):
                root.update(dict.fromkeys(s.results, root.get(s.values[0], s.values[0])))
        return root

    @property
    def launches(self) -> list[Launch]:
        return [s for s in self.steps if isinstance(s, Launch)]

    def __str__(self) -> str:
        given = ", ".join(p.name for p in self.params if p.weight is None)
        lines = [line for s in self.steps for line in _lines(s)]
        lines.append(f"return {', '.join(r.name for r in self.returns)}")
        return "\n".join([f"def {self.name}({given}):", *(INDENT + line for line in lines)])


@dataclass(frozen=True, eq=False)
class Program:
    """A module lowered: its functions, and why ops that have a kernel run their body (``declined``).

    ``room`` has the bytes that the values of a step need, by its tokens and sequences, as far as they were
    counted (``runner.planned``).
    """

    module: Module
    functions: Mapping[str, Function]
    declined: Mapping[str, str]
    room: dict[tuple[int, int], int] = field(
        default_factory=dict[tuple[int, int], int], init=False, compare=False, repr=False
    )

    @property
    def fallbacks(self) -> dict[str, int]:
        """Ops that run their reference body, and how many nodes do."""
        return dict(Counter(s.node.op.name for s in self.bodies))

    @property
    def bodies(self) -> Iterator[Launch]:
        """The launches of reference bodies."""
        return (s for f in self.functions.values() for s in f.launches if s.kernel == BODY)

    @property
    def exact(self) -> bool:
        """Whether a body looks at sequences, or asks the host: steps are then as large as they are, and no
        graph is made of them.
        """
        return any(asks_host(s.node) for s in self.bodies)

    @property
    def weights(self) -> list[Param]:
        """The parameters with weights that launches read."""
        read = (v for f in self.functions.values() for s in f.steps for v in s.values)
        return list(dict.fromkeys(v for v in read if isinstance(v, Param) and v.weight is not None))

    def __str__(self) -> str:
        return f"# {self.module.model} for cuda\n\n" + "\n\n".join(map(str, self.functions.values())) + "\n"


HOST = ("expert_linear", "moe", "head_linear")
"""Ops whose bodies ask the host what is in a tensor, beside all that are given sequences."""


def asks_host(n: Node) -> bool:
    """Whether a reference body cannot be captured, or knows nothing of rows that fill a bucket."""
    return n.op.name in HOST or any(v.type.elem == SEQS or isinstance(v.type.elem, Cached) for v in n.values)


def last_uses(
    steps: Sequence[Step | Stmt], returns: Sequence[Value], root: Mapping[Value, Value]
) -> list[list[Value]]:
    """For each step the values that nothing reads after it, nor is any view of them, as ``root`` says."""
    later = {root.get(r, r) for r in returns}
    out: list[list[Value]] = []
    for s in reversed(steps):
        used = [root.get(v, v) for v in (*s.values, *s.results)]
        ended = [v for v in dict.fromkeys(used) if v not in later]
        out.append(ended)
        later.update(ended)
    return out[::-1]


def lies_alone(v: Value, values: Sequence[Arg], roots: Mapping[Value, Value]) -> bool:
    """Whether one alone of ``values`` lies where ``v`` does; ``roots`` has whose memory views see."""
    return [roots.get(x, x) for x in values if isinstance(x, Value)].count(roots.get(v, v)) == 1


def stored(v: Value) -> bool:
    """Whether a value is a tensor with entries."""
    return isinstance(v.type.elem, (Elem, Quant))


def _shown(v: Any) -> str:
    """An attribute; of a form, what is not as it is by default."""
    if not is_dataclass(v) or isinstance(v, Elem):
        return show_attr(v)
    given = ((f.name, getattr(v, f.name)) for f in fields(v) if getattr(v, f.name) != f.default)
    return f"{type(v).__name__}({', '.join(f'{name}={_word(x)}' for name, x in given)})"


def _word(x: Any) -> str:
    return str(x) if isinstance(x, Quant) else repr(x)


def _lines(s: Step) -> list[str]:
    if isinstance(s, Loop):
        inner = [INDENT + line for x in s.body if isinstance(x, Call) for line in _lines(x)]
        return [f"for {s.var} in range({s.start}, {s.stop}, {s.step}):", *inner]
    if isinstance(s, Call):
        index = f"[{s.index}]" if s.index else ""
        given = ", ".join([*(a.name for a in s.args), *map(str, (*s.slots, *s.reads))])
        results = ", ".join([*(r.name for r in s.results if stored(r)), *map(str, s.slots)])
        return [f"{results} = {s.callee}{index}({given})"]
    return [str(s)]
