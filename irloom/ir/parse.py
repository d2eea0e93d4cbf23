"""The textual form, read with ``ast``. Errors name the op and the operand, then the line."""

from __future__ import annotations

import ast
import base64
import re
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from . import ops as _ops
from .dims import symbols
from .elem import Quant
from .errors import IRError
from .graph import Arg, Builder, Call, Func, Index, Loop, Module, Node, Param, Slot, Stmt, Value
from .op import OPS
from .parse_type import TypeReader, integer, literal_attr
from .types import Type
from .weight_expr import parse_weight

assert _ops, "imported for its definitions: they fill OPS"
Env = dict[str, Value]
DEFAULT_RANGE = (1, 65536)


def parse(text: str) -> Module:
    """Read a module. ``IRError`` says what is wrong and in which line.

    Text without a header may use any symbol as a dim; its range is then 1 to 65536.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as e:
        raise _placed(
            IRError(f"not the textual form of a module: {e.msg}"), e.lineno or 1, text.splitlines()
        ) from None
    return _Reader(text).module(tree)


def _placed(error: IRError, line: int, lines: list[str]) -> IRError:
    if not error.places:
        source = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        error.at(f"  --> line {line}").at(f"   | {source}")
    return error


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.m = Module({})
        self.types = TypeReader(self.m.quants)

    def module(self, tree: ast.Module) -> Module:
        self._title()
        for stmt in tree.body:
            try:
                self._top(stmt)
            except IRError as e:
                raise _placed(e, stmt.lineno, self.lines) from None
        if not self.m.funcs:
            raise IRError("the text holds no function", hint="a module has at least `def main(...)`")
        if not self.m.dims:
            used = (symbols(d) for f in self.m.funcs.values() for t in _types(f) for d in t.dims)
            self.m.dims = dict.fromkeys(sorted({name for one in used for name in one}), DEFAULT_RANGE)
        return self.m

    def _title(self) -> None:
        first = self.lines[0] if self.lines else ""
        if version := re.match(r"# irloom (\d+)", first):
            if version[1] != "1":
                raise IRError(
                    f"the text is of format {version[1]}, this irloom reads format 1", hint="update irloom"
                )
            for part in first.split("   ")[1:]:
                key, _, rest = part.partition(": ")
                if key == "model":
                    self.m.model = rest
                elif key == "after":
                    self.m.passes = rest.split(", ")

    def _top(self, stmt: ast.stmt) -> None:
        match stmt:
            case ast.FunctionDef():
                if stmt.name in self.m.funcs:
                    raise IRError(f"function {stmt.name!r} is defined twice")
                self.m.funcs[stmt.name] = _FuncReader(self, stmt).read()
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=ast.Subscript(value=ast.Name(id="dim"), slice=bounds)
            ):
                self.m.dims[name] = _range(name, bounds)
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=ast.Subscript(value=ast.Name(id="buffer"), slice=size)
            ):
                self.m.buffers[name] = self.types.dim(size)
            case ast.Expr(value=ast.Call(func=ast.Name(id="mesh"), keywords=axes)):
                self.m.mesh = {str(k.arg): integer(k.value) for k in axes}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="quant")) as call):
                self.m.quants[name] = self._quant(name, call)
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="const"), args=[t, data])
            ):
                self.m.consts[name] = _const(name, self.types.type(t), data)
            case _:
                raise IRError(f"not a declaration or a function: {ast.unparse(stmt)[:60]}")

    def _quant(self, name: str, call: ast.Call) -> Quant:
        given = {str(k.arg): k.value for k in call.keywords}
        if extra := sorted(set(given) - {"group", "rows", "scale", "zero"}):
            raise IRError(f"quant: no field {extra[0]!r}", hint="it has group, rows, scale, zero")
        if len(call.args) != 1 or not {"group", "scale"} <= set(given):
            raise IRError(
                "quant: needs a base element, a group and a scale", hint="quant(i4, group=128, scale=bf16)"
            )
        zero = self.types.plain(given["zero"]) if "zero" in given else None
        base, scale = self.types.plain(call.args[0]), self.types.plain(given["scale"])
        group, rows = integer(given["group"]), integer(given["rows"]) if "rows" in given else 1
        if group < 0 or rows < 0:
            raise IRError(f"quant: blocks of {rows} rows by {group} entries", hint="0 is all of a dim")
        return Quant(name, base, group, scale, zero, rows)


def _types(f: Func) -> list[Type]:
    values = [*f.params, *(r for s in f.body for r in s.results)]
    return [v.type for v in values]


def _range(name: str, e: ast.expr) -> tuple[int, int]:
    if not isinstance(e, ast.Tuple) or len(e.elts) != 2:
        raise IRError(f"{name}: dim[{ast.unparse(e)}] is no range", hint="both ends: dim[1, 8192]")
    low, high = (integer(x) for x in e.elts)
    if not 1 <= low <= high:
        raise IRError(f"{name}: no dim is in dim[{low}, {high}]", hint="1 <= the first <= the last")
    return low, high


def _const(name: str, t: Type, data: ast.expr) -> Any:
    import torch

    try:
        raw = bytearray(base64.b64decode(ast.literal_eval(data), validate=True))
    except (ValueError, TypeError):
        raise IRError(f"const {name}: its bytes are not base64") from None
    if len(raw) != t.nbytes:
        raise IRError(f"const {name}: {t} is {t.nbytes} bytes, {len(raw)} are given")
    flat = torch.frombuffer(raw, dtype=t.plain.torch) if raw else torch.empty(0, dtype=t.plain.torch)
    return flat.reshape(cast("tuple[int, ...]", t.dims))


class _FuncReader:
    """Reads one function; ``env`` is what each name stands for at this point of it."""

    def __init__(self, reader: _Reader, tree: ast.FunctionDef) -> None:
        self.reader, self.tree, self.types = reader, tree, reader.types
        self.f = Func(tree.name)
        self.env: Env = {}

    def read(self) -> Func:
        given = self.tree.args
        if given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg:
            raise IRError(f"function {self.f.name}: a parameter is `name: type`, or with `= weight(...)`")
        args, n = given.args, len(given.defaults)
        defaults = [*[None] * (len(args) - n), *self.tree.args.defaults]
        for a, weight in zip(args, defaults, strict=True):
            self._at(a.lineno, self._param, a, weight)
        self._block(self.tree.body, self.f.body)
        if not self.f.returns:
            raise IRError(f"function {self.f.name} returns nothing", hint="end it with `return` and values")
        said = self.tree.returns
        if said is not None:
            self._at(said.lineno, self._check_returns, said)
        return self.f

    def _at(self, line: int, do: Any, *args: Any) -> Any:
        try:
            return do(*args)
        except IRError as e:
            raise _placed(e, line, self.reader.lines) from None

    def _param(self, a: ast.arg, weight: ast.expr | None) -> None:
        if a.annotation is None:
            raise IRError(f"parameter `{a.arg}` has no type")
        t, buffer = self.types.placed(a.annotation)
        p = Param(a.arg, t, buffer, parse_weight(weight, self.reader.m.quants) if weight else None)
        self.f.params.append(p)
        self._define(p)

    def _define(self, v: Value) -> None:
        if v.name in self.env:
            raise IRError(
                f"{v.name} is defined twice", hint="every value has one name; only a loop carries one on"
            )
        self.env[v.name] = v

    def _check_returns(self, said: ast.expr) -> None:
        types = [self.types.type(e) for e in (said.elts if isinstance(said, ast.Tuple) else [said])]
        made = [r.type for r in self.f.returns]
        if types != made:
            raise IRError(f"{self.f.name} says it returns {types}, but it returns {made}")

    def _block(self, stmts: list[ast.stmt], into: list[Stmt], carried: set[str] | None = None) -> None:
        for stmt in stmts:
            self._at(stmt.lineno, self._statement, stmt, into, carried or set())

    def _statement(self, stmt: ast.stmt, into: list[Stmt], carried: set[str]) -> None:
        if self.f.returns or (into is not self.f.body and isinstance(stmt, ast.Return)):
            raise IRError("`return` is the last statement of a function, outside of its loops")
        match stmt:
            case ast.Return(value=value) if value is not None:
                names = value.elts if isinstance(value, ast.Tuple) else [value]
                self.f.returns = [self._value(e) for e in names]
            case ast.For():
                into.append(self._loop(stmt))
            case ast.AnnAssign(target=ast.Name() as target, value=ast.Call() as call):
                self._assign([target], call, stmt, into, carried, stmt.annotation)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Call() as call):
                self._assign(targets, call, stmt, into, carried, None)
            case ast.Assign(targets=[target], value=ast.Call() as call):
                self._assign([target], call, stmt, into, carried, None)
            case _:
                raise IRError(f"not a statement of the IR: {ast.unparse(stmt)[:60]}")

    def _assign(
        self,
        targets: list[ast.expr],
        call: ast.Call,
        stmt: ast.stmt,
        into: list[Stmt],
        carried: set[str],
        said: ast.expr | None,
    ) -> None:
        comment = self.reader.lines[(stmt.end_lineno or stmt.lineno) - 1].partition("  # ")[2]
        if self._callee(call) in self.reader.m.funcs:
            s: Node | Call = self._call(targets, call, comment, said)
        else:
            s = self._node(targets, call, comment, said)
        into.append(s)
        for r in s.results[: len(s.results) - (len(s.slots) if isinstance(s, Call) else 0)]:
            if r.name in carried:
                self.env[r.name] = r
            else:
                self._define(r)

    def _callee(self, call: ast.Call) -> str:
        match call.func:
            case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)):
                return name
            case _:
                raise IRError(f"{ast.unparse(call.func)} is neither an op nor a function")

    def _node(self, targets: list[ast.expr], call: ast.Call, comment: str, said: ast.expr | None) -> Node:
        name = self._callee(call)
        op = OPS.find(name)
        if op is None:
            near = get_close_matches(name, [*self.reader.m.funcs, *(o.name for o in OPS)], 1)
            hint = f"did you mean {near[0]!r}?" if near else "a function must stand before its callers"
            raise IRError(f"unknown op {name!r}", hint=hint)
        scratch: list[Stmt] = []
        builder = Builder(self.f, scratch, taken=set())
        args = [self._arg(a) for a in call.args]
        builder.emit(op, args, {str(k.arg): literal_attr(k.value, self.types.quants) for k in call.keywords})
        (node,) = scratch
        assert isinstance(node, Node)
        if len(targets) != len(node.results):
            raise IRError(f"{name} has {len(node.results)} results, {len(targets)} names are given")
        for target, r in zip(targets, node.results, strict=True):
            r.name = _name(target)
        types, node.loc = _split_comment(comment) if len(targets) > 1 else ([], comment)
        places = (
            [self.types.placed(said)]
            if said is not None
            else [self.types.placed(ast.parse(t, mode="eval").body) for t in types]
        )
        for r, (t, buffer) in zip(node.results, places, strict=False):
            if t != r.type:
                raise IRError(f"{r.name} says {t}, but {name} makes {r.type}")
            r.buffer = buffer
        return node

    def _call(self, targets: list[ast.expr], call: ast.Call, comment: str, said: ast.expr | None) -> Call:
        callee = self.reader.m.funcs[self._callee(call)]
        if call.keywords or said is not None:
            raise IRError(
                f"{callee.name} is called with more than operands: {ast.unparse(call)}",
                hint="x, y = function[i](a, b): no keywords, no types",
            )
        index = _index(call.func.slice) if isinstance(call.func, ast.Subscript) else None
        slots = [self._slot(a) for a in call.args if isinstance(a, ast.Subscript)]
        args = [self._value(a) for a in call.args if not isinstance(a, ast.Subscript)]
        if len(targets) != len(callee.returns):
            raise IRError(
                f"{callee.name} returns {len(callee.returns)} values, {len(targets)} names are given"
            )
        renewed = [self._slot(t) for t in targets if isinstance(t, ast.Subscript)]
        if renewed != slots[: len(renewed)]:
            raise IRError(
                f"{callee.name} reads {[str(s) for s in slots]}, but renews {[str(s) for s in renewed]}",
                hint="same slots, same order, then those that are only read",
            )
        names = [str(self._slot(t)) if isinstance(t, ast.Subscript) else _name(t) for t in targets]
        results = [Value(n, r.type) for n, r in zip(names, callee.returns, strict=True)]
        reads = slots[len(renewed) :]
        return Call(callee.name, index, args, renewed, results, comment, reads)

    def _loop(self, stmt: ast.For) -> Loop:
        match stmt:
            case ast.For(target=ast.Name(id=var), iter=ast.Call(func=ast.Name(id="range"), args=bounds)):
                r = _bounds(bounds)
            case _:
                raise IRError(
                    f"not a loop of the IR: for {ast.unparse(stmt.target)} in {ast.unparse(stmt.iter)}",
                    hint="for i in range(...)",
                )
        assigned = [t for s in stmt.body if isinstance(s, (ast.Assign, ast.AnnAssign)) for t in _targets(s)]
        names = [n for n in dict.fromkeys(assigned) if n in self.env]
        inits = [self.env[n] for n in names]
        params = [Value(v.name, v.type) for v in inits]
        outer = dict(self.env)
        self.env.update(zip(names, params, strict=True))
        body: list[Stmt] = []
        self._block(stmt.body, body, set(names))
        yields = [self.env[n] for n in names]
        results = [Value(v.name, v.type) for v in yields]
        self.env = {**outer, **dict(zip(names, results, strict=True))}
        return Loop(var, r.start, r.stop, r.step, inits, params, body, yields, results)

    def _value(self, e: ast.expr) -> Value:
        name = _name(e)
        if name not in self.env:
            near = get_close_matches(name, self.env, 1)
            raise IRError(f"{name} is not defined yet", hint=f"did you mean {near[0]!r}?" if near else "")
        return self.env[name]

    def _arg(self, e: ast.expr) -> Arg:
        if isinstance(e, ast.Name) and e.id not in ("inf", "nan"):
            return self._value(e)
        if not isinstance(e, (ast.Constant, ast.UnaryOp, ast.Name)):
            raise IRError(f"not an operand: {ast.unparse(e)}", hint="a value's name, or a number")
        return cast("Arg", literal_attr(e))

    def _slot(self, e: ast.expr) -> Slot:
        assert isinstance(e, ast.Subscript), "who calls this has looked"
        return Slot(self._value(e.value), _index(e.slice))


def _bounds(given: list[ast.expr]) -> range:
    numbers = [integer(b) for b in given]
    if not 1 <= len(numbers) <= 3 or (len(numbers) == 3 and numbers[2] == 0):
        raise IRError(f"not the bounds of a loop: {', '.join(map(str, numbers))}", hint="for i in range(18)")
    return range(*numbers)


def _split_comment(text: str) -> tuple[list[str], str]:
    if not text.startswith("-> "):
        return [], text
    types, _, loc = text[3:].partition("  ")
    try:
        tree = ast.parse(f"({types},)", mode="eval").body
    except SyntaxError:
        raise IRError(f"not types of results: {types}", hint="# -> f32[T], i32[T]") from None
    assert isinstance(tree, ast.Tuple)
    return [ast.unparse(e) for e in tree.elts], loc


def _targets(s: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = s.targets[0] if isinstance(s, ast.Assign) else s.target
    return [
        t.id
        for t in (targets.elts if isinstance(targets, ast.Tuple) else [targets])
        if isinstance(t, ast.Name)
    ]


def _name(e: ast.expr) -> str:
    if not isinstance(e, ast.Name):
        raise IRError(f"not a name: {ast.unparse(e)}", hint="an operand is a value's name or a number")
    return e.id


def _index(e: ast.expr) -> Index:
    match e:
        case ast.Constant(value=int() as n):
            return Index(None, n)
        case ast.Name(id=var):
            return Index(var, 0)
        case ast.BinOp(left=ast.Constant(value=int() as times), op=ast.Mult(), right=ast.Name(id=var)):
            return Index(var, 0, times)
        case ast.BinOp(left=left, op=ast.Add(), right=ast.Constant(value=int() as n)):
            found = _index(left)
            if found.var is not None and not found.offset:
                return replace(found, offset=n)
        case _:
            pass
    hint = "a number, i, or i + number; where a loop counts rounds, 4*i + number"
    raise IRError(f"not a layer index: {ast.unparse(e)}", hint=hint)
