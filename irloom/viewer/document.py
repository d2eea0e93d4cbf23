"""The data of a page: what stands in its ``<script type="application/json" id="irloom-data">``.

Everything that repeats is stored once, in a table, and named by its place there: texts, types, ops, sets of
attributes, costs, parameters, statements, functions. Consecutive states of a program share most statements,
and 80 layers share most types and costs, so a page grows with what is distinct.

The reader resolves a name as Python would: to its last definition above, in the function's own statements. A
loop's body sees the carried names, and a call's results are what the callee returns.
"""

from __future__ import annotations

from typing import Any, TypedDict

FORMAT = 1

Ref = int
"""An index into the table that the field's comment names."""


class TypeRow(TypedDict):
    """A type: its text, what an entry is (``float``, ``quant``, ``cache``, ...), and its facts in words."""

    text: str
    kind: str
    notes: list[str]


class OpRow(TypedDict):
    """An op: its signature, its docstring, the file of the op set that defines it, its operands' names."""

    name: str
    signature: str
    doc: str
    room: str
    operands: list[str]


class FuncRow(TypedDict):
    """A function in one state: ``params`` and ``body`` are refs, ``returns`` names (refs to ``strings``)."""

    name: str
    params: list[Ref]
    body: list[Ref]
    returns: list[Ref]


class StateRow(TypedDict):
    """The program at one point of the pipeline: its functions (refs to ``funcs``), its header as lines."""

    funcs: list[Ref]
    header: list[str]
    nodes: int


Mark = tuple[str, str, str]
"""A value, what happened to its node (a kind of ``irloom.ir.diff``), and what it is on the other side of the
pass: ``function.value``, or empty where there is nothing."""


class StepRow(TypedDict):
    """A pass of the pipeline, between two states. ``before`` and ``after`` hold marks by function.

    ``near`` has a place, a reason, and which share of the pattern matched.

    ``errors`` maps a function to ``[value, relative error]`` of what exists before and after the pass.
    """

    name: str
    text: str
    seconds: float
    changes: list[str]
    near: list[tuple[str, str, float]]
    before: dict[str, list[Mark]]
    after: dict[str, list[Mark]]
    numerics: dict[str, Any] | None
    errors: dict[str, list[tuple[str, float]]] | None


class Workload(TypedDict):
    """A step that costs are for: ``tokens`` in equal parts over ``seqs`` sequences of ``context``."""

    name: str
    tokens: int
    seqs: int
    context: int


class Tables(TypedDict):
    """What states refer to.

    ``stmts`` rows begin with their kind:
    ``[0, op, args, attrs, results, path, line, made by, cost]`` is an op application,
    ``[1, callee, index, args, slots, reads, results, path]`` a call,
    ``[2, var, start, stop, step, inits, params, yields, results, body]`` a loop.
    An argument is a ref to ``strings``, a literal as ``[text]``, or null where it is absent; a result is
    ``[name, type, buffer]``; a slot is ``[stack, index]``. Path, line, pass, names and buffers are refs to
    ``strings``, where 0 is the empty text.
    ``attrs`` rows are lists of ``[key, text, is default]``; ``params`` rows ``[name, type, buffer, weight]``.
    ``costs`` rows are ``[flops, bytes, seconds, bound by compute]`` for each workload, one after the other;
    seconds are null without a device. ``-1`` stands for a cost that is not known.
    """

    strings: list[str]
    types: list[TypeRow]
    ops: list[OpRow]
    attrs: list[list[tuple[str, str, int]]]
    costs: list[list[float | None]]
    params: list[tuple[Ref, Ref, Ref, Ref]]
    stmts: list[list[Any]]
    funcs: list[FuncRow]


class Document(TypedDict):
    """A page's data. ``states`` has one entry more than ``steps``: the program before the first pass."""

    format: int
    irloom: str
    model: str
    figures: list[tuple[str, str]]
    workloads: list[Workload]
    device: dict[str, Any] | None
    tables: Tables
    states: list[StateRow]
    steps: list[StepRow]
