"""What is computed twice, and what is computed for nothing."""

from __future__ import annotations

from collections.abc import Hashable

from irloom.ir.graph import Call, Func, Loop, Module, Node, Param, Stmt, Value
from irloom.ir.show import show_attr
from irloom.ir.weight_expr import Const, WeightExpr, operands

from .core import Changes, spend
from .draft import Draft


def share(f: Func) -> Changes:
    """One parameter for weights of one expression, one node for nodes of one op, operands and attributes."""
    changes = Changes()
    first: dict[Hashable, Param | Node] = {}
    swap: dict[Value, Value] = {}
    carried = {v for s in f.body if isinstance(s, Loop) for v in (*s.inits, *s.yields)}
    for p in list(f.weights):
        old = first.setdefault((p.weight, p.type), p)
        if old is not p and isinstance(old, Param) and p not in carried and spend():
            swap[p] = old
            f.params.remove(p)
            changes.places.append(f"{f.name}.{p.name}: the same weight as {old.name}")
    kept: list[Stmt] = []
    for s in f.body:
        old = first.setdefault(_key(s, swap), s) if isinstance(s, Node) else s
        if old is s or not isinstance(s, Node) or carried.intersection(s.results) or not spend():
            kept.append(s)
            continue
        assert isinstance(old, Node)
        swap.update(zip(s.results, old.results, strict=True))
        changes.places.append(f"{f.name}.{s.results[0].name}: the same as {old.results[0].name}")
    f.body = kept
    f.replace_uses(swap)
    return changes


def _key(n: Node, swap: dict[Value, Value]) -> Hashable:
    args = [("v", id(swap.get(a, a))) if isinstance(a, Value) else ("n", show_attr(a)) for a in n.args]
    if n.op.commutative:
        args[:2] = sorted(args[:2], key=str)
    return n.op.name, tuple(args), tuple((k, show_attr(v)) for k, v in n.attrs.items())


def drop(f: Func) -> Changes:
    """Take out nodes and weights that nothing reads. Calls stay: they renew caches."""
    changes = Changes()
    live = set(f.returns)
    kept: list[Stmt] = []
    for s in reversed(f.body):
        if isinstance(s, Node) and not live.intersection(s.results) and spend():
            changes.places.append(f"{f.name}.{s.results[0].name}: nothing reads it")
            continue
        kept.append(s)
        live.update(s.values)
    f.body = kept[::-1]
    for p in f.weights:
        if p not in live and spend():
            f.params.remove(p)
            changes.places.append(f"{f.name}.{p.name}: nothing reads it")
    return changes


def drop_inputs(m: Module, f: Func) -> None:
    """Take out the inputs that ``f`` does not read, and what ``main`` computed for them alone."""
    if f.name == "main" or "main" not in m.funcs:
        return
    read = {v for s in f.body for v in s.values} | set(f.returns)
    kept = [p in read for p in f.data]
    for c in (c for s in m.main.body for c in (s.body if isinstance(s, Loop) else [s])):
        if isinstance(c, Call) and c.callee == f.name:
            c.args = [a for a, keep in zip(c.args, kept, strict=False) if keep]
    f.params = [p for p in f.params if p.weight is not None or p in read]
    d = Draft(m.main)
    d.sweep(m.main.nodes)
    d.commit()


def share_consts(m: Module) -> Changes:
    """One constant for tensors of the same entries; one that no weight names is dropped."""
    changes = Changes()
    first: list[str] = []
    alias: dict[str, str] = {}
    for name, x in m.consts.items():
        same = (o for o in first if m.consts[o].dtype == x.dtype and m.consts[o].equal(x))
        alias[name] = next(same, name)
        if alias[name] == name:
            first.append(name)
    weights = [p for f in m.funcs.values() for p in f.weights]
    for p in weights:
        if (
            isinstance(p.weight, Const)
            and alias.get(p.weight.name, p.weight.name) != p.weight.name
            and spend()
        ):
            changes.places.append(f"{p.weight.name}: the same constant as {alias[p.weight.name]}")
            p.weight = Const(alias[p.weight.name])
    named = {name for p in weights if p.weight for name in _consts(p.weight)}
    for name in [n for n in m.consts if n not in named]:
        if spend():
            del m.consts[name]
            changes.places.append(f"{name}: nothing reads it")
    return changes


def _consts(e: WeightExpr) -> set[str]:
    return {e.name} if isinstance(e, Const) else {name for x in operands(e) for name in _consts(x)}
