"""The verifier: small named rules, each with an error of its own. It runs after every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast

from .buffers import called_buffers, lifetimes, storage
from .dims import covers, symbols
from .elem import CACHES, Cached, Opaque, Quant
from .errors import IRError
from .graph import Call, Func, Index, Loop, Module, Node, Param, Stmt, Value
from .show import show_node, show_typed
from .types import Type
from .weight_expr import offsets

Rule = Callable[[Module, Func], None]
RULES: dict[str, Rule] = {}


def rule(fn: Rule) -> Rule:
    """Register a rule under its function's name, with dashes."""
    name = fn.__name__.replace("_", "-")
    if name in RULES:
        raise IRError(f"verifier rule {name!r} is defined twice")
    RULES[name] = fn
    return fn


def verify(m: Module) -> None:
    """Raise ``IRError`` for the first broken rule; it ends with the rule and the function."""
    if "main" not in m.funcs and len(m.funcs) != 1:
        raise IRError("the module has no function `main`", hint=f"it has {', '.join(m.funcs)}")
    for f in m.funcs.values():
        for name, check in RULES.items():
            try:
                check(m, f)
            except IRError as e:
                raise e.at(f"  --> rule {name}, function {f.name}") from None


def _values(f: Func) -> Iterator[Value]:
    yield from f.params
    for s in f.body:
        yield from _made(s)


def _made(s: Stmt) -> Iterator[Value]:
    if isinstance(s, Loop):
        yield from s.params
        for inner in s.body:
            yield from _made(inner)
    yield from s.results


@rule
def loops_are_flat(m: Module, f: Func) -> None:
    """Loops are over calls and nodes, not over loops; an index counts by the loop it stands in."""
    for s in f.body:
        for inner in s.body if isinstance(s, Loop) else [s]:
            if isinstance(inner, Loop):
                raise IRError(f"the loop over {inner.var} stands in another loop", hint="loops do not nest")
            if isinstance(inner, Call):
                for index in (inner.index, *(x.index for x in (*inner.slots, *inner.reads))):
                    _check_index(inner, index, s.var if isinstance(s, Loop) else None)


def _check_index(c: Call, index: Index | None, var: str | None) -> None:
    if index is not None and index.var not in (None, var):
        raise IRError(
            f"{c.callee} is called at index {index}, but {index.var} is not the variable of its loop",
            hint=f"the loop is over {var}" if var else "the call is in no loop",
        )


@rule
def defined_before_use(m: Module, f: Func) -> None:
    """Every operand is a parameter or the result of an earlier statement."""
    _check_block(f, f.body, set(f.params))
    known = {*f.params, *(r for s in f.body for r in s.results)}
    for r in f.returns:
        if r not in known:
            raise IRError(f"{r.name} is returned, but nothing defines it")


def _check_block(f: Func, body: list[Stmt], known: set[Value]) -> None:
    for s in body:
        for v in s.values:
            if v not in known:
                raise IRError(f"{v.name} is used by {s.results[0].name} before it is defined")
        if isinstance(s, Loop):
            _check_block(f, s.body, {*known, *s.params})
        known.update(s.results)


@rule
def one_name_each(m: Module, f: Func) -> None:
    """No two values share a name, but for what a loop carries on; slots are named after their stack."""
    carried: set[Value] = set()
    for s in f.body:
        if isinstance(s, Loop):
            for four in zip(s.inits, s.params, s.yields, s.results, strict=True):
                if len({v.name for v in four}) > 1:
                    raise IRError(
                        f"the loop over {s.var} carries {four[0].name} on as {four[3].name}",
                        hint="one name for all four",
                    )
            carried.update(
                v for inner in s.body for v in inner.results if v.name in {p.name for p in s.params}
            )
            carried.update((*s.params, *s.results))
    slots = {v for s in f.body for v in _slot_results(s)}
    count = Counter(v.name for v in _values(f) if v not in carried and v not in slots)
    if twice := [name for name, n in count.items() if n > 1]:
        raise IRError(f"{twice[0]} names two values")


def _slot_results(s: Stmt) -> list[Value]:
    match s:
        case Call():
            return s.results[len(s.results) - len(s.slots) :]
        case Loop():
            return [v for inner in s.body for v in _slot_results(inner)]
        case Node():
            return []


@rule
def types_follow(m: Module, f: Func) -> None:
    """Every node's types are what its op infers from its operands."""
    known: dict[Hashable, tuple[Type, ...]] = {}  # a model's layers ask the same questions
    for s in _inside(f.body):
        if not isinstance(s, Node):
            continue
        question = (s.op, *map(_exact, s.operands), *((k, _exact(v)) for k, v in s.attrs.items()))
        try:
            made = known.get(question) or known.setdefault(question, s.op.infer(s.operands, s.attrs))
        except IRError as e:
            raise e.at(f"   | {show_node(s)}") from None
        if len(made) != len(s.results):
            names = ", ".join(r.name for r in s.results) or "nothing"
            raise IRError(f"{s.op.name} makes {len(made)} values, the node {names}")
        for value, t in zip(s.results, made, strict=True):
            if value.type != t:
                raise IRError(f"{show_typed(value)}, but {s.op.name} makes {t}").at(f"   | {show_node(s)}")


def _exact(x: Any) -> Hashable:
    """What only an equal of the same type is equal to: 1 is neither 1.0 nor True."""
    if isinstance(x, (tuple, list)):
        return (tuple, *map(_exact, cast("list[Any]", x)))
    return x if isinstance(x, Type) else (cast("type[Any]", type(x)), x)


@rule
def declared(m: Module, f: Func) -> None:
    """Dims, mesh axes, quantized elements and buffers that types name are declared in the header."""
    fine: set[Type] = set()
    for v in _values(f):
        if v.buffer and v.buffer not in m.buffers:
            raise IRError(f"{show_typed(v)}: buffer {v.buffer} is not declared")
        if v.type in fine:
            continue
        fine.add(v.type)
        for d in v.type.dims:
            if missing := sorted(symbols(d) - set(m.dims)):
                raise IRError(
                    f"{show_typed(v)}: dim {missing[0]} is not declared", hint=f"{missing[0]}: dim[1, 65536]"
                )
        axes = {a for a in (*v.type.axes, v.type.partial) if a}
        if m.mesh and (lost := sorted(axes - set(m.mesh))):
            raise IRError(
                f"{show_typed(v)}: mesh axis `{lost[0]}` is not declared", hint=f"mesh({lost[0]}=2)"
            )
        if isinstance(v.type.elem, Quant) and m.quants.get(v.type.elem.name) != v.type.elem:
            raise IRError(
                f"{show_typed(v)}: element {v.type.elem} is not declared",
                hint=f"{v.type.elem} = {v.type.elem.declaration()}",
            )


@rule
def weights_last(m: Module, f: Func) -> None:
    """Data parameters come before bound ones, and caches are never bound."""
    bound = False
    for p in f.params:
        if bound and p.weight is None:
            raise IRError(
                f"parameter {p.name} comes after a weight", hint="data first, then caches, then weights"
            )
        bound = bound or p.weight is not None
        if p.weight is not None and isinstance(p.type.elem, Opaque | Cached):
            raise IRError(f"{show_typed(p)} cannot be a weight")


@rule
def quantized_values(m: Module, f: Func) -> None:
    """A quantized value is a weight or made by ``quantize``; its groups divide its dims, so its scales are
    known.
    """
    made = {r for n in f.nodes if n.op.name == "quantize" for r in n.results}
    for v in _values(f):
        if isinstance(v.type.elem, Quant):
            if v not in made and (not isinstance(v, Param) or v.weight is None):
                raise IRError(
                    f"{show_typed(v)} is quantized, but is no weight, and not what `quantize` makes",
                    hint="ops compute on plain elements; products take quantized rows, and say elem=bf16",
                )
            try:
                v.type.elem.scale_dims(v.type.dims)
            except IRError as e:
                raise e.at(f"   | {show_typed(v)}") from None


@rule
def partial_sums_finished(m: Module, f: Func) -> None:
    """No function returns a sum that is still split (ops refuse one by their signatures)."""
    for r in f.returns:
        if r.type.partial:
            raise IRError(
                f"{show_typed(r)} is returned unfinished",
                hint=f"all_reduce(axis={r.type.partial!r}) it first",
            )


@rule
def calls_fit(m: Module, f: Func) -> None:
    """A call gives what its callee takes, and its callee stands before it."""
    order = list(m.funcs)
    for c in _inside(f.body):
        if not isinstance(c, Call):
            continue
        callee = m.funcs.get(c.callee)
        if callee is None or order.index(c.callee) >= order.index(f.name):
            raise IRError(f"{f.name} calls {c.callee}, which is not defined before it")
        given = [a.type for a in c.args]
        caches = [r.type for r in c.results[len(c.results) - len(c.slots) :]]
        want = [p.type for p in callee.data]
        caches += want[len(want) - len(c.reads) :]
        if [*given, *caches] != want:
            raise IRError(f"{c.callee} takes {want}, but is given {[*given, *caches]}")
        if [r.type for r in c.results] != [r.type for r in callee.returns]:
            raise IRError(
                f"{c.callee} returns {[r.type for r in callee.returns]}, not {[r.type for r in c.results]}"
            )
        if c.index is None and any(offsets(p.weight) for p in callee.weights):
            raise IRError(f"{c.callee} binds weights per layer, but is called without an index")


def _inside(body: list[Stmt]) -> Iterator[Stmt]:
    for s in body:
        if isinstance(s, Loop):
            yield from s.body
        else:
            yield s


@rule
def caches_once(m: Module, f: Func) -> None:
    """Each cache is renewed once per step, read only after that, and returned.

    A function may be given a cache that an earlier call has renewed, to read it: it does not return that.
    """
    readers = f.readers()
    for p in f.data:
        if isinstance(p.type.elem, Cached):
            lent = (
                f.name != "main"
                and p not in f.returns
                and not any(_renewed(s, p) for s in readers.get(p, []))
            )
            if not lent:
                _cache_chain(f, p, readers)
        elif p.type.elem == CACHES:
            _stack(m, f, p)


def _cache_chain(f: Func, p: Value, readers: dict[Value, list[Stmt]]) -> None:
    first = readers.get(p, [])
    renewals = [(s, r) for s in first if (r := _renewed(s, p)) is not None]
    if len(renewals) != 1:
        raise IRError(f"cache {p.name} is renewed {len(renewals)} times", hint="once per step")
    ((by, kept),) = renewals
    if others := [s for s in first if s is not by]:
        raise IRError(
            f"cache {p.name} is read by {others[0].results[0].name} as it was before this step",
            hint=f"read {kept.name}",
        )
    if kept not in f.returns:
        raise IRError(f"cache {kept.name} is not returned", hint="the next step needs it")
    if len([r for r in f.returns if r is kept]) > 1:
        raise IRError(f"cache {kept.name} is returned twice")


def _renewed(s: Stmt, cache: Value) -> Value | None:
    """The cache that an op makes of ``cache``; None where it only reads it."""
    if not isinstance(s, Node):
        return None
    return next((r for r in s.results if r.type == cache.type), None)


def _stack(m: Module, f: Func, p: Value) -> None:
    if f.name != "main":
        raise IRError(f"{show_typed(p)}: only main holds a stack of caches")
    (count,) = p.type.dims
    if not isinstance(count, int):
        raise IRError(f"{show_typed(p)}: how many caches there are is a number, not {count}")
    seen = Counter(i for _, _, at in m.calls() for i in at)
    for i in range(count):
        if seen[i] != 1:
            raise IRError(f"cache {p.name}[{i}] is renewed {seen[i]} times", hint="once per step")
    if extra := sorted(i for i in seen if not 0 <= i < count):
        raise IRError(f"cache {p.name}[{extra[0]}] is outside {p.type}")
    if p not in f.returns:
        raise IRError(f"{p.name} is not returned", hint="the next step needs it")
    _reads(m, p)


def _reads(m: Module, stack: Value) -> None:
    """Caches are lent after they are renewed, as what they are."""
    renewed: dict[int, Type] = {}
    for c, env in m.runs():
        data = m.funcs[c.callee].data
        for x, p in zip(c.reads, data[len(data) - len(c.reads) :], strict=True):
            i = x.index.at(env)
            if i not in renewed:
                raise IRError(f"{c.callee} reads cache {stack.name}[{i}], which no call before it renews")
            if renewed[i] != p.type:
                raise IRError(f"{c.callee} reads {p.type}, but cache {stack.name}[{i}] is {renewed[i]}")
        made = c.results[len(c.results) - len(c.slots) :]
        renewed.update((x.index.at(env), r.type) for x, r in zip(c.slots, made, strict=True))


@rule
def buffers_hold(m: Module, f: Func) -> None:
    """A buffer is as large as each value in it, whatever the dims are."""
    for v in _values(f):
        size = m.buffers.get(v.buffer or "")
        if size is not None and not covers(size, v.type.nbytes):
            raise IRError(f"{show_typed(v)} is {v.type.nbytes} bytes, but buffer {v.buffer} has {size}")


@rule
def no_aliases(m: Module, f: Func) -> None:
    """Two values that live at the same time are not in one buffer, unless one is a view of the other.

    A value may take the buffer of an operand that its own op reads last. What a call writes must not be in
    use.
    """
    if not m.buffers:
        return
    root, span = storage(f), lifetimes(f)
    holder: dict[str, Value] = {}
    for at, s in enumerate(f.body):
        for name in called_buffers(m, s):
            old = holder.get(name)
            if old is not None and span[old][1] >= at:
                raise IRError(
                    f"{s.results[0].name} is computed in {name}, where {old.name} lives, which is read later"
                )
        for r in s.results:
            if r.buffer is None or root[r] is not r:
                continue
            old = holder.get(r.buffer)
            if old is not None and (span[old][1] > at or old in s.results):
                raise IRError(f"{show_typed(r)} is written where {old.name} lives, which is read later")
            holder[r.buffer] = r
