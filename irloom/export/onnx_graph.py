"""A program as an ONNX file that Netron opens: its structure, types and weights' names, not its numbers.

An op is a node of the domain ``irloom``, a function an ONNX function of the domain ``irloom.function``, and
``main`` the graph. Loops over layers are written out, so each layer's weights are there: initializers whose
data is in a file ``absent``, which is (`onnx.checker` asks for one of that name), but for constants. An
opaque operand is an ``int32`` tensor, a cache a tensor of its pages; what they are is in the denotation of
their types. No runtime can run it: the ops are irloom's.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from irloom import __version__
from irloom.ir.elem import CACHES, Elem, Opaque, Paged, Quant, State
from irloom.ir.errors import IRError
from irloom.ir.graph import Call, Func, Loop, Module, Node, Param, Stmt, Value, take_name
from irloom.ir.interp import cache_types
from irloom.ir.op import Attr
from irloom.ir.show import show_attr
from irloom.ir.types import Type
from irloom.ir.weight_expr import Const, Tensor, show_weight, tensor_name

OPS, FUNCTIONS = "irloom", "irloom.function"
ABSENT = "absent"
IR_VERSION, OPSET = 10, 21
"""The first of ONNX with types inside of functions and with metadata at nodes."""

DTYPES = {
    "f64": "DOUBLE", "f32": "FLOAT", "f16": "FLOAT16", "bf16": "BFLOAT16", "f8e4m3": "FLOAT8E4M3FN",
    "f8e5m2": "FLOAT8E5M2", "i64": "INT64", "i32": "INT32", "i16": "INT16", "i8": "INT8", "i4": "INT4",
    "u8": "UINT8", "u4": "UINT4", "bool": "BOOL",
}  # fmt: skip


def write(m: Module, functions: list[Func]) -> bytes:
    """The file. ``functions`` beside ``main`` are ONNX functions; without it, the first one is the graph."""
    onnx = _onnx()
    graph = next((f for f in functions if f.name == "main"), functions[0])
    used = [f for f in functions if f is not graph]
    model = onnx.helper.make_model(
        _Writer(m, {}).graph(graph),
        functions=[_Writer(m, {}).function(f) for f in used],
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in (("", OPSET), (OPS, 1), (FUNCTIONS, 1))],
        ir_version=IR_VERSION,
        producer_name="irloom",
        producer_version=__version__,
        doc_string=f"after: {', '.join(m.passes)}" if m.passes else "",
    )
    return model.SerializeToString()


def _onnx() -> Any:
    try:
        return import_module("onnx")
    except ModuleNotFoundError:
        raise IRError("format onnx needs the package onnx", hint="pip install 'irloom[onnx]'") from None


class _Writer:
    """Writes one body; ``env`` names what each value is called in the ONNX graph."""

    def __init__(self, m: Module, env: dict[Value, str]) -> None:
        self.onnx, self.m, self.env = _onnx(), m, env
        self.stacks: dict[Value, dict[int, str]] = {}  # what each cache of a stack is called now
        self.taken = set[str]()
        self.nodes: list[Any] = []
        self.infos: list[Any] = []
        self.weights: dict[str, Any] = {}

    def graph(self, f: Func) -> Any:
        """The top: data are its inputs, weights initializers."""
        inputs = [x for p in f.data for x in self._input(p)]
        for p in f.weights:
            self.env[p] = self._weight(p, None)
        self._body(f.body, {})
        outputs = [x for r in f.returns for x in self._output(r)]
        return self.onnx.helper.make_graph(
            *(self.nodes, f.name, inputs, outputs, list(self.weights.values())), value_info=self.infos
        )

    def function(self, f: Func) -> Any:
        """A function: data, then weights are its inputs."""
        for p in (*f.data, *f.weights):
            self.env[p] = take_name(p.name, self.taken)
            self.infos.append(self._info(self.env[p], p.type))
        self._body(f.body, {})
        outputs = [self._copied(r, f) for r in f.returns]
        made = self.onnx.helper.make_function(
            *(FUNCTIONS, f.name, [self.env[p] for p in (*f.data, *f.weights)], outputs, self.nodes),
            opset_imports=[self.onnx.helper.make_opsetid(d, v) for d, v in (("", OPSET), (OPS, 1))],
        )
        made.value_info.extend(self.infos)
        return made

    def _copied(self, r: Value, f: Func) -> str:
        """What a function returns must not be one of its inputs: that goes through an Identity."""
        if r not in f.params:
            return self.env[r]
        name = take_name(r.name, self.taken)
        self.nodes.append(self.onnx.helper.make_node("Identity", [self.env[r]], [name]))
        return name

    def _body(self, body: list[Stmt], at: dict[str, int]) -> None:
        for s in body:
            match s:
                case Node():
                    self._node(s)
                case Call():
                    self._call(s, at)
                case Loop():
                    for i in s.indices:
                        entering = s.inits if i == s.start else s.yields
                        self._same(s.params, [self._name(v) for v in entering])
                        self._body(s.body, {**at, s.var: i})
                    self._same(s.results, [self._name(v) for v in (s.yields if s.indices else s.inits)])

    def _same(self, values: Sequence[Value], names: Sequence[str]) -> None:
        self.env.update(zip(values, names, strict=True))

    def _name(self, v: Value) -> str:
        return self.env[v]

    def _node(self, n: Node) -> None:
        inputs = [
            "" if a is None else self._name(a) if isinstance(a, Value) else self._number(a) for a in n.args
        ]
        made = self.onnx.helper.make_node(
            n.op.name, inputs, self._results(n), name=self._place(n), doc_string=n.loc, domain=OPS
        )
        made.attribute.extend(x for k, v in n.attrs.items() for x in self._attribute(k, v))
        self._note(made, {"loc": n.loc, "made_by": n.made_by})
        self.nodes.append(made)

    def _call(self, c: Call, at: dict[str, int]) -> None:
        callee, number = self.m.funcs[c.callee], c.index.at(at) if c.index else None
        slots = [(self.stacks[x.stack], x.index.at(at)) for x in c.slots]
        reads = [(self.stacks[x.stack], x.index.at(at)) for x in c.reads]
        caches = [stack[i] for stack, i in (*slots, *reads)]
        weights = [self._weight(p, number) for p in callee.weights]
        renewed = [f"{x.stack.name}[{i}]" for x, (_, i) in zip(c.slots, slots, strict=True)]
        outputs = self._results(c, [*(r.name for r in c.results[: len(c.results) - len(slots)]), *renewed])
        made = self.onnx.helper.make_node(
            *(c.callee, [*map(self._name, c.args), *caches, *weights], outputs),
            name=self._place(c, number),
            domain=FUNCTIONS,
        )
        self.nodes.append(made)
        for (stack, i), name in zip(slots, outputs[len(outputs) - len(slots) :], strict=True):
            stack[i] = name

    def _results(self, s: Node | Call, called: Sequence[str] | None = None) -> list[str]:
        names = [take_name(name, self.taken) for name in called or [r.name for r in s.results]]
        self._same(s.results, names)
        self.infos += [self._info(name, r.type) for name, r in zip(names, s.results, strict=True)]
        return names

    def _place(self, s: Node | Call, number: int | None = None) -> str:
        """Where Netron shows a node to come from: its module, then what it makes."""
        path = s.loc.partition(" ")[0].replace("{i}", str(number))
        return "/".join((*path.split("."), self.env[s.results[0]])).lstrip("/") if s.results else path

    def _number(self, a: Any) -> str:
        name = take_name("number", self.taken)
        kind = {"value_int": a} if isinstance(a, int) else {"value_float": a}
        self.nodes.append(self.onnx.helper.make_node("Constant", [], [name], **kind))
        return name

    def _attribute(self, key: str, v: Attr) -> list[Any]:
        """An attribute as ONNX has it; what it has no word for, as text. None is left out."""
        make, kinds = self.onnx.helper.make_attribute, self.onnx.AttributeProto
        match v:
            case None:
                return []
            case bool() | int():
                return [make(key, int(v))]
            case float() | str():
                return [make(key, v)]
            case tuple() if all(isinstance(x, int) for x in v):
                return [make(key, [int(x) for x in v if isinstance(x, int)], attr_type=kinds.INTS)]
            case tuple():
                return [make(key, [show_attr(x) for x in v], attr_type=kinds.STRINGS)]
            case _:
                return [make(key, show_attr(v))]

    def _note(self, made: Any, facts: dict[str, str]) -> None:
        for key, text in facts.items():
            if text:
                made.metadata_props.add(key=f"irloom.{key}", value=text)

    def _input(self, p: Param) -> list[Any]:
        if p.type.elem != CACHES:
            self.env[p] = take_name(p.name, self.taken)
            return [self._info(self.env[p], p.type)]
        types = {i: t for i, t in cache_types(self.m).items() if isinstance(i, int)}
        self.stacks[p] = {i: take_name(f"{p.name}[{i}]", self.taken) for i in types}
        self.env[p] = p.name
        return [self._info(self.stacks[p][i], t) for i, t in types.items()]

    def _output(self, r: Value) -> list[Any]:
        if r in self.stacks:
            types = cache_types(self.m)
            return [self._info(name, types[i]) for i, name in self.stacks[r].items()]
        return [self._info(self._name(r), r.type)]

    def _info(self, name: str, t: Type) -> Any:
        """A value's name and type; a dim that is no number is text."""
        dims = [d if isinstance(d, int) else str(d) for d in t.dims]
        info = self.onnx.helper.make_tensor_value_info(name, self._dtype(t), dims)
        if not isinstance(t.elem, Elem):
            info.type.denotation = str(t)
        return info

    def _dtype(self, t: Type) -> int:
        match t.elem:
            case Elem(name=name):
                kind = name
            case Quant(base=base):
                kind = base.name
            case Paged(elem=elem) | State(elem=elem):
                kind = elem.name
            case Opaque():
                kind = "i32"
        return int(getattr(self.onnx.TensorProto, DTYPES[kind]))

    def _weight(self, p: Param, number: int | None) -> str:
        """The initializer of a weight for a layer, or for any (``{i}``) where the layer is the graph."""
        assert p.weight is not None
        text = p.weight.name if isinstance(p.weight, Tensor) else show_weight(p.weight)
        text = text if number is None else tensor_name(text, number)
        if text not in self.weights:
            self.weights[text] = self._initializer(text, p)
        return text

    def _initializer(self, name: str, p: Param) -> Any:
        if isinstance(p.weight, Const):
            x = self.m.consts[p.weight.name].detach().cpu()
            values = x.double().flatten().tolist()
            return self.onnx.helper.make_tensor(name, self._dtype(p.type), list(x.shape), values)
        made = self.onnx.TensorProto(name=name, data_type=self._dtype(p.type), dims=list(p.type.dims))
        made.data_location = self.onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value=ABSENT)
        return made
