"""Import: a captured graph of the library, node by node, into one IR function without a batch dim."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

from irloom.frontends.hf.aten import TRANSLATORS, Stored
from irloom.frontends.hf.aten.complex import Complex, on_complex
from irloom.frontends.hf.aten.core import PAST, TOKENS, Translator
from irloom.frontends.hf.aten.stored import by_token, reads_cache
from irloom.frontends.hf.capture import Capture
from irloom.frontends.hf.memory import Memory, in_place
from irloom.frontends.hf.spelled import Probe, raise_spelled
from irloom.frontends.hf.symbols import dim_of
from irloom.frontends.hf.trace_errors import OTHERS, place_of
from irloom.frontends.hf.views import View
from irloom.ir import ops
from irloom.ir.dims import sym, without
from irloom.ir.elem import ELEMS, SEQS, elem_of
from irloom.ir.errors import IrloomError, TraceError
from irloom.ir.graph import Builder, Func, Module, Param, Value
from irloom.ir.types import Type
from irloom.ir.weights import Const, Tensor, WeightExpr

WRAPPER = "model."
"""Where the library's model sits in the module that was exported."""


def import_graph(capture: Capture, model: nn.Module, name: str) -> Module:
    """The captured graph as a module with one function, ``main(ids, seqs, weights...) -> f32[T, V]``.

    Weights are parameters bound to the names that ``model`` gives them, a tied one to its first name. Buffers
    that the library computes become constants, scalar ones numbers. Raises ``TraceError`` naming op, module
    and line.
    """
    return _Importer(capture, model, name).run()


class _Importer:
    def __init__(self, capture: Capture, model: nn.Module, name: str) -> None:
        self.capture, self.graph, self.model = capture, capture.whole.graph, model
        first: dict[int, str] = {}
        named = list(model.named_parameters(remove_duplicate=False))
        self.tied = {path: first.setdefault(id(param), path) for path, param in named}
        self.ids = Param("ids", Type(ELEMS["i32"], (TOKENS,)))
        self.seqs = Param("seqs", Type(SEQS, (TOKENS, sym("S"))))
        self.func = Func("main", [self.ids, self.seqs])
        self.module = Module({"main": self.func}, model=name, dims={"T": (1, 8192), "S": (1, 256)})
        self.build = Builder(self.func)
        self.env: dict[FxNode, Any] = {}
        self.bound: dict[str, Any] = {}
        self.made: list[tuple[torch.Tensor, Value]] = []
        self.offered = {"seqs": self.seqs, "constant": self.constant}
        self.wants: dict[Translator, dict[str, Any]] = {}
        self.symbols = {capture.tokens: TOKENS, capture.past: PAST}

    def run(self) -> Module:
        specs = {spec.arg.name: spec for spec in self.capture.whole.specs}
        symbols = (self.capture.tokens, self.capture.past)
        probe = Probe(
            self.graph, symbols, lambda n: self.known(specs[n.name]), self.placed, padding_ids(self.model)
        )
        raise_spelled(probe)
        self.memory = Memory(self.graph)
        live = _live(self.graph, self.memory)
        with self.build:
            for node in self.graph.nodes:
                if node not in live:
                    continue
                self.build.loc = location(node)
                if node.op == "placeholder":
                    self.env[node] = self.input(node, specs[node.name])
                elif node.op == "call_function":
                    try:
                        self.env[node] = self.call(node)
                    except Exception as error:
                        raise self.placed(error, node) from error
                elif node.op == "output":
                    self.finish(node.args[0][0])
        return self.module

    def input(self, node: FxNode, spec: InputSpec) -> Any:
        """What a graph input is: ids, positions, a weight, a constant, or a scalar buffer's number."""
        if spec.kind is InputKind.USER_INPUT:
            match node.name:
                case "input_ids":
                    return View(self.ids, (None, 0))
                case "position_ids":
                    self.build.loc = ""
                    return View(ops.positions(self.seqs), (None, 0))
                case _:
                    return None
        path = spec.target or ""
        path = path.removeprefix(WRAPPER)
        path = self.tied.get(path, path)
        if path not in self.bound:
            self.bound[path] = self.bind(path, node.meta["val"], bool(spec.persistent), spec.kind)
        return self.bound[path]

    def bind(self, path: str, fake: torch.Tensor, persistent: bool, kind: InputKind) -> Any:
        """A parameter of ``main`` for the weight or buffer at ``path``."""
        leaf = _leaf(path)
        stored = kind is InputKind.PARAMETER or (persistent and kind is InputKind.BUFFER)
        if stored and not fake.is_complex():
            return self.param(leaf, fake, Tensor(path))
        value = self.value(path)
        if value is None:
            raise TraceError(f"buffer `{path}` has no value and is in no checkpoint")
        if value.is_complex():
            parts = (("real", value.real), ("imag", value.imag))
            return Complex(*(View.of(self.constant(f"{leaf}_{part}", x.contiguous())) for part, x in parts))
        if value.ndim == 0:
            return value.item()
        const = leaf if leaf not in self.module.consts else re.sub(r"\W", "_", path)
        self.module.consts[const] = value.contiguous()
        return self.param(leaf, value, Const(const))

    def value(self, path: str) -> torch.Tensor | None:
        """The value of the buffer or constant at ``path``, if it has one."""
        constants = self.capture.whole.constants
        value = self.capture.buffers.get(path, constants.get(WRAPPER + path, constants.get(path)))
        return value if isinstance(value, torch.Tensor) and not value.is_meta else None

    def known(self, spec: InputSpec) -> torch.Tensor | None:
        """The value of a graph input that is no weight, if it has one."""
        return (
            None
            if spec.kind is InputKind.PARAMETER
            else self.value((spec.target or "").removeprefix(WRAPPER))
        )

    def constant(self, name: str, value: torch.Tensor) -> Any:
        """A parameter of ``main`` that holds ``value``; the same one for the same value."""
        for held, param in self.made:
            if held.dtype == value.dtype and torch.equal(held, value):
                return param
        const = self.build.fresh(name)
        self.module.consts[const] = value
        self.made.append((value, self.param(const, value, Const(const)).value))
        return self.made[-1][1]

    def param(self, name: str, like: torch.Tensor, weight: WeightExpr) -> View:
        kind = Type(elem_of(like.dtype), tuple(like.shape))
        param = Param(self.build.fresh(name), kind, weight=weight)
        self.func.params.append(param)
        return View.of(param)

    def call(self, node: FxNode) -> Any:
        """Translate one op; its result is a view, a number, a dim, or a tuple of these."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int):
            return dim_of(value, self.symbols)
        args: Any = map_arg(node.args, self.read)
        kwargs: Any = map_arg(node.kwargs, self.read)
        if node.target is operator.getitem:
            return operator.getitem(*args)
        name = str(node.target)
        inplace = f".{name.split('.')[1]}".endswith("_") and name not in TRANSLATORS
        key = name.replace("_.", ".", 1) if inplace else name
        translator = TRANSLATORS.get(key)
        if translator is None:
            raise TraceError(f"op `{name}` has no translation")
        if translator not in self.wants:
            takes = inspect.signature(translator).parameters
            self.wants[translator] = {k: v for k, v in self.offered.items() if k in takes}
        kwargs = {**kwargs, **self.wants[translator]}
        self.build.name = source_name(node)
        if reads_cache(name, (args, kwargs)):
            result = by_token(translator, args, kwargs)
        elif any(isinstance(arg, Complex) for arg in args):
            result = on_complex(name, translator, args, kwargs)
        else:
            result = translator(*args, **kwargs)
        result = _settled(result)
        self.build.name = None
        if inplace:
            self.memory.write(node, result, self.env, self.call, lambda x: map_arg(x, self.read))
            result = self.env[node]
        self.check(node, result)
        return result

    def read(self, node: FxNode) -> Any:
        return self.env[node]

    def check(self, node: FxNode, result: Any) -> None:
        """Dims here are the dims there: the translation's own proof."""
        fake = node.meta.get("val")
        if isinstance(result, View | Stored) and isinstance(fake, torch.Tensor):
            wanted = tuple(dim_of(d, self.symbols) for d in fake.shape)
            if isinstance(result, Stored):
                result, wanted = result.view, tuple(without(d, str(PAST)) for d in wanted)
            if wanted != result.dims:
                raise TraceError(
                    f"op `{node.target}` gives {wanted} in the library, but {result.dims} in the IR"
                )

    def placed(self, error: Exception, node: FxNode) -> TraceError:
        """``error`` as a ``TraceError`` that says where in the source model it happened and what to write."""
        if not isinstance(error, TraceError):
            said, hint = (error.message, error.hint) if isinstance(error, IrloomError) else (repr(error), "")
            error = TraceError(f"op `{node.target}` does not import: {said}", hint=hint)
        place = place_of(self.model, module_path(node), *source_line(node))
        translate = f'translate it with @irloom.translates("{node.target}"), or '
        error.hint = error.hint or ("has no translation" in error.message) * translate + place.replace()
        error.at(str(place))
        return error

    def finish(self, output: FxNode) -> None:
        """Return the logits, in f32 and without the batch dim."""
        logits = self.env[output]
        if isinstance(logits, Stored) or not isinstance(logits, View) or logits.rank != 3:
            raise TraceError("the model does not return logits [1, T, vocabulary]")
        value = logits.arranged((1, 2))
        self.build.loc, self.build.name = "", "logits"
        self.func.returns = [value if value.type.elem == ELEMS["f32"] else ops.cast(value, to=ELEMS["f32"])]


def _settled(result: Any) -> Any:
    """What an op gave, with tokens first wherever a translation left them elsewhere."""
    match result:
        case View():
            return result.tokens_first()
        case Stored():
            return Stored(result.view.tokens_first(), result.layer)
        case Complex():
            return result.each(View.tokens_first)
        case list() | tuple():
            return type(result)(_settled(x) for x in result)
        case _:
            return result


def padding_ids(model: nn.Module) -> set[int]:
    """Ids that stand for no token, by the model's config or a module of it."""
    config = getattr(model, "config", None)
    told = [getattr(config, name, None) for name in ("pad_token_id", "pad_index")]
    told += [getattr(m, "padding_idx", None) for m in model.modules()]
    return {i for i in told if isinstance(i, int)}


def _live(graph: torch.fx.Graph, memory: Memory) -> set[FxNode]:
    """Nodes that the output depends on, in-place ops on memory that it reads among them."""
    live: set[FxNode] = set()
    read: set[FxNode] = set()
    for node in reversed(graph.nodes):
        needed = node.op == "output" or any(user in live for user in node.users)
        written = memory.root(node) if in_place(node) else None
        if needed or written in read:
            live.add(node)
            read |= {memory.root(n) for n in node.all_input_nodes}
    return live


def _leaf(path: str) -> str:
    """The end of a weight's path as a name: module and parameter, and what numbers a module."""
    parts = path.split(".")
    start = next((i for i in range(max(len(parts) - 2, 0), 0, -1) if not parts[i][:1].isdigit()), 0)
    return re.sub(r"\W", "_", ".".join(parts[start:]))


def module_path(node: FxNode) -> str:
    """Where in the model a node was computed: ``model.layers.0.self_attn.q_proj``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack and isinstance(stack[-1], tuple) else ""
    return path.removeprefix(WRAPPER) if path.startswith(WRAPPER) else ""


def source_line(node: FxNode) -> tuple[str, int]:
    """The innermost line of a ``modeling_*.py``, else the innermost one outside of torch and irloom."""
    frames = [
        (file, line)
        for file, line in _frames(node.meta.get("stack_trace") or "")
        if not file.startswith(OTHERS)
    ]
    modeling = [frame for frame in frames if PurePath(frame[0]).name.startswith("modeling_")]
    return (modeling or frames or [("", 0)])[-1]


def _frames(trace: str) -> Iterator[tuple[str, int]]:
    for match in re.finditer(r'File "([^"]+)", line (\d+)', trace):
        yield match[1], int(match[2])


def location(node: FxNode) -> str:
    """``model.layers.0.self_attn.q_proj modeling_llama.py:155``: module path, then file and line."""
    file, line = source_line(node)
    place = f"{PurePath(file).name}:{line}" if file else ""
    return " ".join(part for part in (module_path(node), place) if part)


def source_name(node: FxNode) -> str | None:
    """The name of the module for an op that is a whole module (``q_proj``), else None."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not isinstance(stack[-1], tuple):
        return None
    path, cls = stack[-1]
    op = str(node.target).split(".")[1]
    whole = str(cls).startswith("torch.nn.") or op in ("linear", "addmm", "embedding")
    leaf = path.rpartition(".")[2]
    return leaf if whole and leaf.isidentifier() and path.startswith(WRAPPER) else None
