"""How recurrent ops become ONNX operators: a ``Scan`` over the tokens of all slots at once.

Rows are padded to ``[B, N, ...]``, and in every turn each slot takes one token; the state of a slot that has
no more stays as it is. States of sequences that begin are zeros: whoever runs the model gives them so.
Convolutions and shifts of tokens look back a few rows, and need no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from irloom.ir.elem import ELEMS, Elem, State
from irloom.ir.graph import Node, Value
from irloom.ir.op import OPS
from irloom.ir.recurrent import PREFIX, TOKENS
from irloom.ir.types import Type

from .graph import Graph
from .lower import Lowering, Operand, lowers
from .slots import SLOTS, Cache, packed, padded

F32, I32, I64, BOOL = (ELEMS[e] for e in ("f32", "i32", "i64", "bool"))

Turn = Callable[[Graph, Sequence[str], Sequence[str], str], tuple[str, str]]
"""``turn(g, tokens, others, state)``: one token of each slot [B, ...]; what it gives, and the next state.

``others`` are the operands that do not come by token, then the attributes as text.
"""


def turns(op: str) -> Callable[[Turn], Turn]:
    """Register what a recurrent op does with one token of each slot; states are in f32 meanwhile."""

    def wrap(turn: Turn) -> Turn:
        def scanned(low: Lowering, n: Node, *given: Operand) -> Operand:
            return Recurrence(low, n, given).scan(turn)

        lowers(op, PREFIX + op)(scanned)
        return turn

    return wrap


class Recurrence:
    """A recurrent op with its operands sorted out: those of the plain op, and the state if it carries one."""

    def __init__(self, low: Lowering, n: Node, given: Sequence[Operand]) -> None:
        self.low, self.g, self.n = low, low.g, n
        self.carried = n.op.name.startswith(PREFIX)
        self.name = n.op.name.removeprefix(PREFIX)
        drop = [i for i, o in enumerate(n.op.operands) if o in ("seqs", "states")]
        kept = [i for i in range(len(given)) if i not in drop]
        self.operands = [given[i] for i in kept]
        values = [n.args[i] if i < len(n.args) else None for i in kept]
        self.types = [v.type if isinstance(v, Value) else None for v in values]
        plain = OPS[self.name]
        terms = [t for t, o in zip(plain.signature.ins, plain.operands, strict=True) if o != "seqs"]
        self.by_token = [bool(t.axes) and t.axes[0].factors[0] == TOKENS for t in terms]
        self.state: Type = plain.hooks["state"](self.types, n.attrs)
        self.states: Cache | None = given[drop[1]] if self.carried else None
        cache = n.args[drop[1]] if self.carried else None
        elem = cache.type.elem if isinstance(cache, Value) else None
        self.stored = elem.elem if isinstance(elem, State) else self.state.plain

    def type(self, at: int) -> Type:
        """The type of an operand."""
        t = self.types[at]
        assert t is not None
        return t

    def slots(self, at: int, elem: Elem = F32) -> str:
        """An operand by token as [B, N, ...]."""
        return padded(self.g, self.g.cast(self.operands[at], self.type(at).plain, elem))

    def before(self, elem: Elem) -> str:
        """The states before this step, [B, ...] in ``elem``."""
        if self.states is not None:
            return self.g.cast(self.states.k, self.stored, elem)
        return self.g("Expand", self.g.constant(0.0, elem), self.g.shape((SLOTS, *self.state.dims)))

    def done(self, y: str, after: str, elem: Elem) -> Operand:
        """Rows [T, ...] of ``y`` [B, N, ...], and with a cache the states ``after``; both in ``elem``."""
        t = self.n.results[0].type
        rows = self.g.cast(packed(self.g, y, t.dims), elem, t.plain)
        if self.states is None:
            return rows
        return rows, Cache((self.g.cast(after, elem, self.stored),))

    def counts(self) -> str:
        """How many tokens each slot brings, i64[B]."""

        def make() -> str:
            starts = self.g("Cast", self.g.given("starts"), to=I64)
            first = self.g("Slice", starts, self.g.ints(0), self.g.ints(-1), self.g.ints(0))
            return self.g(
                "Sub", self.g("Slice", starts, self.g.ints(1), self.g.ints(2**63 - 1), self.g.ints(0)), first
            )

        return self.g.once("counts", make)

    def live(self) -> str:
        """Which tokens of slots there are, bool[B, N]."""

        def make() -> str:
            g = self.g
            width = g.scalar(g("Shape", g.given("pad"), start=1, end=2))
            along = g("Range", g.constant(0, I64), width, g.constant(1, I64))
            return g("Less", along, g("Unsqueeze", self.counts(), g.ints(1)))

        return self.g.once("live", make)

    def last(self, seen: str, axis: int) -> str:
        """Of a state and the rows behind it, along ``axis``, so many that lie last as the state has."""
        g, dims = self.g, (1, *self.state.dims)
        kept = dims[axis]
        assert isinstance(kept, int)
        along = g("Range", g.constant(0, I64), g.constant(kept, I64), g.constant(1, I64))
        at = g("Add", g("Unsqueeze", self.counts(), g.ints(1)), along)
        places = g("Unsqueeze", at, g.ints(*(i for i in range(1, len(dims)) if i != axis)))
        wide = [1 if i == axis else d for i, d in enumerate(dims)]
        return g("GatherElements", seen, g("Expand", places, g.shape(wide)), axis=axis)

    def scan(self, turn: Turn) -> Operand:
        """``turn`` for every token, one after the other."""
        g, many = self.g, range(len(self.operands))
        tokens, others = ([i for i in many if self.by_token[i] == own] for own in (True, False))
        fixed = [g.cast(self.operands[i], self.type(i).plain, F32) for i in others]
        body, out = g.inner(), self.n.results[0].type.dims
        state = body.local("state", Type(F32, (SLOTS, *self.state.dims)))
        live = body.local("live", Type(BOOL, (SLOTS,)))
        each = [body.local("token", Type(F32, (SLOTS, *self.type(i).dims[1:]))) for i in tokens]
        y, after = turn(body, each, [*fixed, *(str(v) for v in self.n.attrs.values())], state)
        held = body("Unsqueeze", live, body.ints(*range(1, 1 + self.state.rank)))
        body.outputs[body("Where", held, after, state)] = body.inputs[state]
        body.outputs[y] = Type(F32, (SLOTS, *out[1:]))
        given = self.before(F32), self.live(), *map(self.slots, tokens)
        inputs = len(tokens) + 1
        axes: dict[str, Any] = {"scan_input_axes": [1] * inputs, "scan_output_axes": [1]}
        left, made = g.several("Scan", *given, outputs=2, body=body, num_scan_inputs=inputs, **axes)
        return self.done(made, left, F32)


def _over(g: Graph, x: str, *axes: int) -> str:
    """``x`` with dims of 1 at ``axes``."""
    return g("Unsqueeze", x, g.ints(*axes))


def _dot(g: Graph, row: str, matrix: str) -> str:
    """``row`` [..., k] times ``matrix`` [..., k, v]: [..., v]."""
    return g("Squeeze", g("MatMul", _over(g, row, -2), matrix), g.ints(-2))


@turns("linear_scan")
def linear_scan(g: Graph, tokens: Sequence[str], others: Sequence[str], state: str) -> tuple[str, str]:
    """``decay * h + x``."""
    x, decay = tokens
    after = g("Add", g("Mul", decay, state), x)
    return g("Identity", after), after


@turns("gated_linear_attention")
def gated_linear_attention(
    g: Graph, tokens: Sequence[str], others: Sequence[str], state: str
) -> tuple[str, str]:
    """``exp(decay) * s + outer(k, v)``, read by ``q``."""
    q, k, v, decay = tokens
    kept = g("Mul", state, _over(g, g("Exp", decay), -1))
    after = g("Add", kept, g("Mul", _over(g, k, -1), _over(g, v, -2)))
    return _dot(g, q, after), after


@turns("gated_delta")
def gated_delta(g: Graph, tokens: Sequence[str], others: Sequence[str], state: str) -> tuple[str, str]:
    """The memory falls, is corrected by what it gets wrong for ``k``, and is read by ``q``."""
    q, k, v, decay, beta = tokens
    kept = g("Mul", state, _over(g, g("Exp", decay), -1))
    error = g("Mul", _over(g, beta, -1), g("Sub", v, _dot(g, k, kept)))
    after = g("Add", kept, g("Mul", _over(g, k, -1), _over(g, error, -2)))
    return _dot(g, q, after), after


@turns("selective_scan")
def selective_scan(g: Graph, tokens: Sequence[str], others: Sequence[str], state: str) -> tuple[str, str]:
    """``exp(dt * a) * h + dt * x * b``, read by ``c``."""
    x, dt, b, c = tokens
    kept = g("Mul", g("Exp", g("Mul", _over(g, dt, -1), others[0])), state)
    after = g("Add", kept, g("Mul", _over(g, g("Mul", dt, x), -1), _over(g, b, -2)))
    return g("Squeeze", g("MatMul", after, _over(g, c, -1)), g.ints(-1)), after


@turns("ssd_scan")
def ssd_scan(g: Graph, tokens: Sequence[str], others: Sequence[str], state: str) -> tuple[str, str]:
    """``exp(dt * a) * h + dt * outer(x, b)``, read by ``c``; heads of a group share ``b`` and ``c``."""
    x, dt, b, c = tokens
    _, heads, size, features = g.inputs[state].dims
    groups = g.inputs[b].dims[1]
    assert isinstance(heads, int) and isinstance(groups, int) and isinstance(features, int)
    assert isinstance(size, int)

    def shared(z: str) -> str:
        wide = g("Expand", _over(g, z, 2), g.ints(1, groups, heads // groups, features))
        return g("Reshape", wide, g.ints(0, heads, features))

    kept = g("Mul", _over(g, g("Exp", g("Mul", dt, others[0])), -1, -2), state)
    rows = g("Mul", _over(g, dt, -1), x)
    after = g("Add", kept, g("Mul", _over(g, rows, -1), _over(g, shared(b), -2)))
    return g("Squeeze", g("MatMul", after, _over(g, shared(c), -1)), g.ints(-1)), after


@turns("wkv")
def wkv(g: Graph, tokens: Sequence[str], others: Sequence[str], state: str) -> tuple[str, str]:
    """Numerator, denominator and running maximum, as in the op's body."""
    (k, v), (decay, first) = tokens, others
    num, den, stored = (
        g("Squeeze", x, g.ints(1)) for x in g.several("Split", state, outputs=3, axis=1, num_outputs=3)
    )
    most = g("Where", g("Greater", den, g.constant(0.0, F32)), stored, g.constant(-1e38, F32))

    def joined(most: str, own: str) -> tuple[str, str, str]:
        top = g("Max", most, own)
        old, new = g("Exp", g("Sub", most, top)), g("Exp", g("Sub", own, top))
        over = g("Add", g("Mul", old, num), g("Mul", new, v))
        return over, g("Add", g("Mul", old, den), new), top

    over, under, _ = joined(most, g("Add", k, first))
    after = joined(g("Add", most, decay), k)
    return g("Div", over, under), g("Concat", *(_over(g, x, 1) for x in after), axis=1)


@turns("mlstm")
def mlstm(g: Graph, tokens: Sequence[str], others: Sequence[str], state: str) -> tuple[str, str]:
    """Memory, normalizer and running maximum of the gates, as in the op's body."""
    q, k, v, write, keep = tokens
    values, eps = g.inputs[v].dims[-1], float(others[0])
    assert isinstance(values, int)
    memory, stored = g.several("Split", state, g.ints(values + 1, 1), outputs=2, axis=-1)
    most = g("Squeeze", g("Gather", stored, g.constant(0, I64), axis=2), g.ints(-1))
    old = g("Add", keep, most)
    top = g("Max", old, write)
    kept, fresh = (_over(g, g("Exp", g("Sub", x, top)), -1, -2) for x in (old, write))
    one = g("Add", g("Mul", g("ReduceMax", v, g.ints(-1)), g.constant(0.0, F32)), g.constant(1.0, F32))
    row = _over(g, g("Concat", v, one, axis=-1), -2)
    after = g("Add", g("Mul", kept, memory), g("Mul", g("Mul", fresh, _over(g, k, -1)), row))
    read, norm = g.several("Split", _dot(g, q, after), g.ints(values, 1), outputs=2, axis=-1)
    least = g("Max", g("Abs", norm), _over(g, g("Exp", g("Neg", top)), -1))
    y = g("Div", read, g("Add", least, g.constant(eps, F32)))
    wide = g("Expand", _over(g, top, -1, -2), g("Shape", stored))
    return y, g("Concat", after, wide, axis=-1)


@lowers("causal_conv", "carried_causal_conv")
def causal_conv(low: Lowering, n: Node, *given: Operand) -> Operand:
    """One ``Conv`` over what came before and the step's rows; the state is the end of those."""
    g, r = low.g, Recurrence(low, n, given)
    weight, bias = r.operands[1], r.operands[2]
    taps = r.type(1).dims[1]
    seen = g("Concat", r.before(F32), g.transpose(r.slots(0), 0, 2, 1), axis=2)
    kernel = g("Unsqueeze", g.cast(weight, r.type(1).plain, F32), g.ints(1))
    shift = None if bias is None else g.cast(bias, r.type(2).plain, F32)
    y = g("Conv", seen, kernel, shift, group=r.type(1).dims[0], kernel_shape=[taps])
    return r.done(g.transpose(y, 0, 2, 1), r.last(seen, 2), F32)


@lowers("token_shift", "carried_token_shift")
def token_shift(low: Lowering, n: Node, *given: Operand) -> Operand:
    """What came before and the step's rows, but for the last; the state is the last."""
    g, r = low.g, Recurrence(low, n, given)
    seen = g("Concat", g("Unsqueeze", r.before(F32), g.ints(1)), r.slots(0), axis=1)
    y = g("Slice", seen, g.ints(0), g.ints(-1), g.ints(1))
    end = g("Unsqueeze", r.counts(), g.ints(*range(1, r.state.rank + 2)))
    last = g("GatherElements", seen, g("Expand", end, g.shape((1, 1, *r.state.dims))), axis=1)
    return r.done(y, g("Squeeze", last, g.ints(1)), F32)
