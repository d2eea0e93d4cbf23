"""The reference interpreter: every op's body in turn, in torch, on any device.

It is what all else is compared with, so it does the plain thing: weights are run from their expressions and
dequantized, caches are copied when they are appended to, nothing is fused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from .dims import Dim, Sym, evaluate, symbols
from .elem import Cached, Elem, Paged, State
from .errors import IRError
from .graph import Call, Func, Loop, Module, Node, Param, Stmt, Value
from .quantized import QuantizedTensor
from .seqs import PagedCache, Seqs, StateCache
from .types import Type
from .weights import materialize

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Frame = dict[Value, Any]
Weights = Callable[[Param, "int | None"], "torch.Tensor"]
Observer = Callable[[Node, tuple[Any, ...], "int | None"], None]


class Interpreter:
    """Runs a module with weights from ``checkpoint``, or with those that ``weights(param, layer)`` gives.

    ``device`` is where tensors live. ``observe(node, results, layer)`` is called after every op: it sees each
    value as it is made (for finding where two programs part). ``disturb(x)`` takes the place of tensors of
    floats that ops compute (for finding what rounding does to a program). Weights stay loaded between runs if
    ``keep``, else they are asked for at every use; a value's memory is free after its last reader.
    """

    def __init__(
        self,
        module: Module,
        checkpoint: Checkpoint | None = None,
        device: torch.device | str = "cpu",
        observe: Observer | None = None,
        weights: Weights | None = None,
        disturb: Callable[[torch.Tensor], torch.Tensor] | None = None,
        keep: bool = True,
    ) -> None:
        self.module, self.checkpoint, self.device, self.observe = module, checkpoint, device, observe
        self.disturb, self.keep = disturb, keep
        self._read = weights or self._materialize
        self._weights: dict[tuple[Param, int | None], torch.Tensor] = {}
        self._ends: dict[Func, list[list[Value]]] = {}

    def __call__(self, *inputs: Any, func: str = "main", layer: int | None = None) -> tuple[Any, ...]:
        """Run ``func`` on its data parameters, in order; the values it returns.

        A tensor is a torch tensor, ``seqs`` a ``Seqs``, a cache a ``PagedCache`` or a ``StateCache``,
        ``caches[n]`` a list of those.
        """
        f = self.module.funcs[func]
        env = bind_symbols(f, inputs)
        return self._run(f, list(inputs), layer, env)

    def _run(self, f: Func, inputs: Sequence[Any], layer: int | None, env: dict[str, int]) -> tuple[Any, ...]:
        frame: Frame = dict(zip(f.data, inputs, strict=True))
        if f not in self._ends:
            self._ends[f] = last_reads(f)
        for s, ends in zip(f.body, self._ends[f], strict=True):
            self._stmt(s, frame, layer, env, {})
            for v in ends:
                frame.pop(v, None)
        return tuple(self._value(r, frame, layer) for r in f.returns)

    def _stmt(
        self, s: Stmt, frame: Frame, layer: int | None, env: dict[str, int], at: dict[str, int]
    ) -> None:
        match s:
            case Node():
                args = [self._value(a, frame, layer) if isinstance(a, Value) else a for a in s.args]
                with torch.device(self.device):  # for what an op makes from nothing
                    out = apply_node(s, args, env)
                if self.disturb and computes(s):
                    out = tuple(self.disturb(x) if _floats(x) else x for x in out)
                frame.update(zip(s.results, out, strict=True))
                if self.observe:
                    self.observe(s, out, layer)
            case Call():
                self._call(s, frame, env, at)
            case Loop():
                frame.update(
                    (p, self._value(v, frame, layer)) for p, v in zip(s.params, s.inits, strict=True)
                )
                for i in s.indices:
                    for inner in s.body:
                        self._stmt(inner, frame, layer, env, {s.var: i})
                    carried = [frame[v] for v in s.yields]
                    frame.update(zip(s.params, carried, strict=True))
                frame.update((r, frame[p]) for r, p in zip(s.results, s.params, strict=True))

    def _call(self, s: Call, frame: Frame, env: dict[str, int], at: dict[str, int]) -> None:
        slots = [x.index.at(at) for x in s.slots]
        caches = [frame[x.stack][x.index.at(at)] for x in (*s.slots, *s.reads)]
        index = s.index.at(at) if s.index else None
        args = [self._value(a, frame, None) for a in s.args]
        out = self._run(self.module.funcs[s.callee], [*args, *caches], index, env)
        frame.update(zip(s.results, out, strict=True))
        for x, i, renewed in zip(s.slots, slots, out[len(out) - len(slots) :], strict=True):
            frame[x.stack] = [*frame[x.stack][:i], renewed, *frame[x.stack][i + 1 :]]

    def _value(self, v: Value, frame: Frame, layer: int | None) -> Any:
        """A value of the frame; a weight is made when it is asked for, not before."""
        return self._weight(v, layer) if isinstance(v, Param) and v.weight is not None else frame[v]

    def _weight(self, p: Param, layer: int | None) -> torch.Tensor:
        key = (p, layer)
        if key in self._weights:
            return self._weights[key]
        x = self._read(p, layer)
        x = x.to(self.device, p.type.elem.torch if isinstance(p.type.elem, Elem) else x.dtype)
        if self.keep:
            self._weights[key] = x
        return x

    def _materialize(self, p: Param, layer: int | None) -> torch.Tensor:
        if self.checkpoint is None:
            raise IRError(
                f"weight `{p.name}` is needed, but there is no checkpoint", hint="give the interpreter one"
            )
        return bound_value(p, self.checkpoint, layer, self.module)


def bound_value(p: Param, checkpoint: Checkpoint, layer: int | None, m: Module) -> torch.Tensor:
    """The value of a weight for one layer, dequantized; ``IRError`` where it is not what its type says."""
    assert p.weight is not None
    x = materialize(p.weight, checkpoint, layer, m.consts)
    x = x.dequantize() if isinstance(x, QuantizedTensor) else x
    if tuple(x.shape) != p.type.dims:
        raise IRError(f"weight `{p.name}` is {list(x.shape)} in {checkpoint.path}, but its type is {p.type}")
    return x


def last_reads(f: Func) -> list[list[Value]]:
    """For each statement the values that nothing reads after it: their memory is free then."""
    later, out = set(f.returns), list[list[Value]]()
    for s in reversed(f.body):
        ends = [v for v in dict.fromkeys((*s.values, *s.results)) if v not in later]
        out.append(ends)
        later.update(ends)
    return out[::-1]


def computes(n: Node) -> bool:
    """Whether an op makes new numbers, and does not only move entries."""
    return "shape" not in n.op.hooks and not n.op.signature.indexed


def _floats(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def apply_node(n: Node, args: Sequence[Any], env: Mapping[str, int]) -> tuple[Any, ...]:
    """Run one op's body; symbolic attributes take their values from ``env``."""
    attrs = {k: resolve(v, env) for k, v in n.attrs.items()}
    out: Any = n.op.reference(*args, **attrs)
    return tuple(cast("Sequence[Any]", out)) if isinstance(out, (tuple, list)) else (out,)


def resolve(v: Any, env: Mapping[str, int]) -> Any:
    """An attribute with every symbol replaced by its value."""
    if isinstance(v, tuple):
        return tuple(resolve(x, env) for x in cast("tuple[Any, ...]", v))
    return evaluate(v, env) if isinstance(v, Sym) else v


def bind_symbols(f: Func, inputs: Sequence[Any]) -> dict[str, int]:
    """The value of each symbol, read off the inputs' shapes; ``IRError`` where an input does not fit."""
    if len(inputs) != len(f.data):
        raise IRError(f"{f.name} takes {', '.join(p.name for p in f.data)}; {len(inputs)} inputs are given")
    env: dict[str, int] = {}
    sized: list[tuple[Param, Dim, int]] = []
    for p, x in zip(f.data, inputs, strict=True):
        sizes = sizes_of(x)
        if sizes is None:
            continue
        if len(sizes) != p.type.rank:
            raise IRError(f"{f.name}: input `{p.name}` has {len(sizes)} dims, its type is {p.type}")
        for d, n in zip(p.type.dims, sizes, strict=True):
            _unify(f, p, d, n, env)
            sized.append((p, d, n))
    for p, d, n in sized:
        if symbols(d) <= set(env) and evaluate(d, env) != n:
            raise IRError(f"{f.name}: input `{p.name}` has size {n} where its type {p.type} says {d}")
    return env


def _unify(f: Func, p: Param, d: Dim, n: int, env: dict[str, int]) -> None:
    if isinstance(d, Sym) and len(d.terms) == 1 and d.terms[0][1] == 1 and len(d.terms[0][0]) == 1:
        name = d.terms[0][0][0]
        if env.setdefault(name, n) != n:
            raise IRError(
                f"{f.name}: input `{p.name}` ({p.type}) makes {name} {n}, but another made it {env[name]}"
            )


def sizes_of(x: Any) -> tuple[int, ...] | None:
    """The sizes that an input gives the dims of its type; None for what has none."""
    match x:
        case Seqs():
            return (x.tokens, x.count)
        case PagedCache():
            return (x.k.shape[0], x.k.shape[2], x.k.shape[3])
        case StateCache():
            return tuple(x.states.shape)
        case list():
            return (len(cast("list[Any]", x)),)
        case _:
            shape = getattr(x, "shape", None)
            return None if shape is None else tuple(shape)


def empty_cache(t: Type, pages: int) -> PagedCache | StateCache:
    """A cache of zeros of a cache type, with ``pages`` pages, or slots."""
    dims = [d for d in t.dims[1:] if isinstance(d, int)]
    match t.elem:
        case Paged(elem=elem, page=page):
            heads, dim = dims
            own = t.elem
            return PagedCache.empty(pages, page, heads, dim, elem.torch, own.pool, own.values, own.stride)
        case State(elem=elem, every=every):
            return StateCache.empty(pages, dims, elem.torch, every)
        case _:
            raise IRError(f"{t} is not a cache")


def cache_types(m: Module) -> dict[str | int, Type]:
    """The caches ``main`` needs: by parameter name, or by index in its stack of caches."""
    own: dict[str | int, Type] = {p.name: p.type for p in m.main.data if isinstance(p.type.elem, Cached)}
    for c, _, at in m.calls():
        made = c.results[len(c.results) - len(at) :]
        own.update(zip(at, (r.type for r in made), strict=True))
    return own
