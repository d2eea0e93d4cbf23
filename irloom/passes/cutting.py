"""Some statements of a function as a program of their own: what they read from outside becomes parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from irloom.ir.graph import Builder, Call, Func, Loop, Module, Param, Stmt, Value, substitute

from .layers import rename_tensors


def cut_out(m: Module, name: str, keep: Collection[int]) -> Module:
    """The statements of function ``name`` at the places ``keep``, as ``main`` of a module of their own.

    It returns what they make and others read, in their order. Weights stay bound to their tensors, for layer
    0 where they are bound per layer.
    """
    new = m.copy()
    f = new.funcs[name]
    body = [s for i, s in enumerate(f.body) if i in keep]
    rest = [s for i, s in enumerate(f.body) if i not in keep]
    made = [r for s in body for r in s.results]
    read = {v for s in rest for v in s.values} | set(f.returns)
    inside = set(made)
    free = dict.fromkeys(v for s in body for v in s.values if v not in inside)
    main = Func("main", [], body, [v for v in made if v in read] or made[-1:])
    names = Builder(main, taken={v.name for s in body for v in _defined(s)})
    swap: dict[Value, Value] = {}
    for v in sorted(free, key=lambda v: isinstance(v, Param) and v.weight is not None):
        weight = v.weight if isinstance(v, Param) else None
        weight = weight and rename_tensors(weight, lambda n: n.replace("{i}", "0"))
        swap[v] = Param(names.fresh(v.name), v.type, None, weight)
    main.params = [p for p in swap.values() if isinstance(p, Param)]

    def follow(a: Any) -> Any:
        return swap.get(a, a) if isinstance(a, Value) else a

    for s in body:
        substitute(s, follow)
    new.funcs = {**_called(new, body), "main": main}
    new.buffers = {}
    return new


def _defined(s: Stmt) -> Iterable[Value]:
    if isinstance(s, Loop):
        yield from (v for inner in s.body for v in _defined(inner))
        yield from s.params
    yield from s.results


def _called(m: Module, body: Iterable[Stmt]) -> dict[str, Func]:
    """The functions that statements call, in the module's order."""
    wanted: set[str] = set()
    for s in body:
        inner = s.body if isinstance(s, Loop) else [s]
        wanted.update(c.callee for c in inner if isinstance(c, Call))
    return {name: f for name, f in m.funcs.items() if name in wanted and name != "main"}
