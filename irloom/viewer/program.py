"""Programs into tables: each distinct statement, type, set of attributes and function is stored once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from irloom.ir.elem import Elem, Opaque, Paged, Quant, State
from irloom.ir.graph import Call, Func, Loop, Module, Node, Param, Slot, Stmt, Value
from irloom.ir.op import Op
from irloom.ir.show import show_attr
from irloom.ir.types import Type
from irloom.ir.weight_expr import show_weight

from .costs import Costs
from .document import FuncRow, OpRow, Ref, StateRow, Tables, TypeRow

NODE, CALL, LOOP = range(3)
_LINE = re.compile(r"\S+:\d+")


@dataclass
class Interned:
    """Rows by key, in the order in which they were first seen."""

    rows: list[Any] = field(default_factory=list[Any])
    index: dict[Hashable, int] = field(default_factory=dict[Hashable, int])

    def add(self, key: Hashable, row: Any) -> int:
        """The place of the row under ``key``; ``row`` is put there if there was none."""
        if (at := self.index.get(key)) is None:
            at = self.index[key] = len(self.rows)
            self.rows.append(row)
        return at


class Programs:
    """Takes one state of a program after another; ``tables`` is what they share."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.strings, self.types, self.ops, self.attrs = Interned(), Interned(), Interned(), Interned()
        self.prices, self.params, self.stmts, self.funcs = Interned(), Interned(), Interned(), Interned()
        self._text("")

    def tables(self) -> Tables:
        """What the states that were added refer to."""
        return {
            "strings": self.strings.rows,
            "types": self.types.rows,
            "ops": self.ops.rows,
            "attrs": self.attrs.rows,
            "costs": self.prices.rows,
            "params": self.params.rows,
            "stmts": self.stmts.rows,
            "funcs": self.funcs.rows,
        }

    def add(self, m: Module) -> StateRow:
        """The state that ``m`` is; ``main`` comes first."""
        order = [m.main, *(f for f in m.funcs.values() if f is not m.main)]
        nodes = sum(_count(f.body) for f in order)
        return {"funcs": [self._func(f) for f in order], "header": _header(m), "nodes": nodes}

    def _func(self, f: Func) -> Ref:
        row: FuncRow = {
            "name": f.name,
            "params": [self._param(p) for p in f.params],
            "body": [self._stmt(s) for s in f.body],
            "returns": [self._text(r.name) for r in f.returns],
        }
        return self.funcs.add(_key([f.name, row["params"], row["body"], row["returns"]]), row)

    def _stmt(self, s: Stmt) -> Ref:
        match s:
            case Node():
                row = self._node(s)
            case Call():
                index = self._text("" if s.index is None else str(s.index))
                slots, reads = ([self._slot(x) for x in each] for each in (s.slots, s.reads))
                head = [CALL, self._text(s.callee), index, [self._arg(a) for a in s.args], slots, reads]
                row = [*head, [self._value(r) for r in s.results], self._text(place(s.loc)[0])]
            case Loop():
                names = [[self._text(v.name) for v in each] for each in (s.inits, s.params, s.yields)]
                head = [LOOP, self._text(s.var), s.start, s.stop, s.step, *names]
                row = [*head, [self._value(r) for r in s.results], [self._stmt(x) for x in s.body]]
        return self.stmts.add(_key(row), row)

    def _node(self, n: Node) -> list[Any]:
        args, results = [self._arg(a) for a in n.args], [self._value(r) for r in n.results]
        attrs = [(k, show_attr(v), int(_is_default(n, k))) for k, v in n.attrs.items()]
        path, line = place(n.loc)
        facts = [self._text(path), self._text(line), self._text(n.made_by), self._cost(n)]
        return [NODE, self._op(n.op), args, self.attrs.add(_key(attrs), attrs), results, *facts]

    def _cost(self, n: Node) -> Ref:
        row = self.costs.of(n)
        return -1 if row is None else self.prices.add(tuple(row), row)

    def _param(self, p: Param) -> Ref:
        weight = "" if p.weight is None else show_weight(p.weight)
        row = (*self._value(p), self._text(weight))
        return self.params.add(row, row)

    def _value(self, v: Value) -> list[Ref]:
        return [self._text(v.name), self._type(v.type), self._text(v.buffer or "")]

    def _slot(self, x: Slot) -> list[Ref]:
        return [self._text(x.stack.name), self._text(str(x.index))]

    def _arg(self, a: Any) -> Any:
        if isinstance(a, Value):
            return self._text(a.name)
        return None if a is None else [show_attr(a)]

    def _text(self, text: str) -> Ref:
        return self.strings.add(text, text)

    def _type(self, t: Type) -> Ref:
        if (at := self.types.index.get(t)) is not None:
            return at
        row: TypeRow = {"text": str(t), "kind": _kind(t), "notes": _notes(t)}
        return self.types.add(t, row)

    def _op(self, op: Op) -> Ref:
        if (at := self.ops.index.get(op)) is not None:
            return at
        row: OpRow = {
            "name": op.name,
            "signature": op.signature.text,
            "doc": op.doc,
            "room": re.split(r"[/\\]", op.place.rpartition(":")[0])[-1].removesuffix(".py"),
            "operands": list(op.operands),
        }
        return self.ops.add(op, row)


def place(loc: str) -> tuple[str, str]:
    """A location as module path and source line.

    >>> place("model.norm modeling_llama.py:64"), place("modeling_llama.py:64"), place("model.norm")
    (('model.norm', 'modeling_llama.py:64'), ('', 'modeling_llama.py:64'), ('model.norm', ''))
    """
    head, _, last = loc.rpartition(" ")
    return (head, last) if _LINE.fullmatch(last) else (loc, "")


def _key(row: Any) -> Hashable:
    return tuple(_key(x) for x in row) if isinstance(row, (list, tuple)) else row


def _is_default(n: Node, key: str) -> bool:
    default, value = n.op.attrs[key], n.attrs[key]
    return type(default) is type(value) and default == value


def _count(body: list[Stmt]) -> int:
    return sum(_count(s.body) if isinstance(s, Loop) else 1 for s in body)


def _header(m: Module) -> list[str]:
    rows = [f"{name}: dim[{low}, {high}]" for name, (low, high) in m.dims.items()]
    rows += [f"mesh({', '.join(f'{axis}={size}' for axis, size in m.mesh.items())})"] if m.mesh else []
    rows += [f"{name} = {q.declaration()}" for name, q in m.quants.items()]
    return rows + [f"{name}: buffer[{size}]" for name, size in m.buffers.items()]


def _kind(t: Type) -> str:
    match t.elem:
        case Elem():
            return t.elem.kind
        case Quant():
            return "quant"
        case Paged() | State():
            return "cache"
        case Opaque():
            return "cache" if t.elem.name == "caches" else "opaque"


def _notes(t: Type) -> list[str]:
    """What a type says about caches, quantization and sharding, in words."""
    notes: list[str] = []
    match t.elem:
        case Paged(elem, page, window, values, stride):
            kept = f"the last {window} tokens stay readable" if window else "every token stays readable"
            notes.append(f"a cache of {elem} in pages of {page} tokens; {kept}")
            notes += ["keys only" if values == 0 else f"values have {values} features"] * (values is not None)
            notes += [f"one entry stands for {stride} tokens"] * (stride > 1)
        case State(elem, every):
            notes.append(f"a state of {elem} per sequence, with a snapshot every {every} tokens")
        case Quant() as q:
            groups = f"groups of {q.group} along the last dim" if q.group else "the whole last dim"
            rows = "" if q.rows == 1 else f" of {q.rows} rows" if q.rows else " of all rows"
            zero = f", zeros in {q.zero}" if q.zero else ""
            notes.append(f"{q.name}: {q.base} values, {groups}{rows} share a scale in {q.scale}{zero}")
        case _:
            pass
    split = [f"dim {i} is split over mesh axis {axis}" for i, axis in enumerate(t.axes) if axis]
    open_sum = [f"a sum that is still split over mesh axis {t.partial}"] if t.partial else []
    return notes + split + open_sum
