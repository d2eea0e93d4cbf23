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
from .graph import Arg, Call, Func, Loop, Module, Node, Param, Stmt, Value
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
    value as it is made (for finding where two programs part). Weights stay loaded between runs.
    """

    def __init__(
        self,
        module: Module,
        checkpoint: Checkpoint | None = None,
        device: torch.device | str = "cpu",
        observe: Observer | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.module, self.checkpoint, self.device, self.observe = module, checkpoint, device, observe
        self._read = weights or self._materialize
        self._weights: dict[tuple[Param, int | None], torch.Tensor] = {}

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
        for p in f.weights:
            frame[p] = self._weight(p, layer)
        for s in f.body:
            self._stmt(s, frame, layer, env, {})
        return tuple(frame[r] for r in f.returns)

    def _stmt(
        self, s: Stmt, frame: Frame, layer: int | None, env: dict[str, int], at: dict[str, int]
    ) -> None:
        match s:
            case Node():
                with torch.device(self.device):  # for what an op makes from nothing
                    out = apply_node(s, [self._arg(a, frame) for a in s.args], env)
                frame.update(zip(s.results, out, strict=True))
                if self.observe:
                    self.observe(s, out, layer)
            case Call():
                self._call(s, frame, env, at)
            case Loop():
                frame.update((p, frame[v]) for p, v in zip(s.params, s.inits, strict=True))
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
        out = self._run(self.module.funcs[s.callee], [*(frame[a] for a in s.args), *caches], index, env)
        frame.update(zip(s.results, out, strict=True))
        for x, i, renewed in zip(s.slots, slots, out[len(out) - len(slots) :], strict=True):
            frame[x.stack] = [*frame[x.stack][:i], renewed, *frame[x.stack][i + 1 :]]

    def _arg(self, a: Arg, frame: Frame) -> Any:
        return frame[a] if isinstance(a, Value) else a

    def _weight(self, p: Param, layer: int | None) -> torch.Tensor:
        key = (p, layer)
        if key not in self._weights:
            x = self._read(p, layer)
            self._weights[key] = x.to(
                self.device, p.type.elem.torch if isinstance(p.type.elem, Elem) else x.dtype
            )
        return self._weights[key]

    def _materialize(self, p: Param, layer: int | None) -> torch.Tensor:
        if self.checkpoint is None:
            raise IRError(
                f"weight `{p.name}` is needed, but there is no checkpoint", hint="give the interpreter one"
            )
        assert p.weight is not None
        x = materialize(p.weight, self.checkpoint, layer, self.module.consts)
        x = x.dequantize() if isinstance(x, QuantizedTensor) else x
        if tuple(x.shape) != p.type.dims:
            raise IRError(
                f"weight `{p.name}` is {list(x.shape)} in {self.checkpoint.path}, but its type is {p.type}"
            )
        return x


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
