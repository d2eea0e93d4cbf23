"""Running a lowered program: its launches in order, on memory of one block.

Nothing here looks at a value, so a run can be captured in a graph: the second run of a step of the same size
queues exactly what the first did, at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from irloom.backends.caches import AnyCache, empty_caches
from irloom.ir.elem import CACHES, SEQS, Cached
from irloom.ir.graph import Arg, Call, Loop, Param, Value
from irloom.ir.interp import apply_node, resolve
from irloom.ir.seqs import PagedCache, Seqs, StateCache

from .launchers import LAUNCHERS
from .memory import Block, Gaps, room, shape
from .program import BODY, Function, Launch, Program, Same, View, last_uses, lies_alone, stored
from .quantized import Operand, Quantized
from .step import Step
from .weight_store import stands_for
from .work import Workspace

Weights = Callable[[Param, "int | None"], Operand]


@dataclass
class Frame:
    """A call of a function under way: what its values are, and the bytes of those that lie in the block.

    ``roots`` has for each view the value whose memory it sees.
    """

    layer: int | None
    values: dict[Value, Any]
    roots: Mapping[Value, Value]
    taken: dict[Value, tuple[int, int]] = field(default_factory=dict[Value, tuple[int, int]])


class Runner:
    """A program with its weights and caches, and a block for its values.

    ``caches`` maps a parameter of ``main`` to its cache, or a stack of caches to a list. With ``dry`` nothing
    is launched: memory is only counted.
    """

    def __init__(
        self,
        program: Program,
        weights: Weights,
        caches: Mapping[str, AnyCache | list[AnyCache]],
        block: Block,
        *,
        dry: bool = False,
    ) -> None:
        self.program, self.weights, self.caches, self.block, self.dry = program, weights, caches, block, dry
        self.device = block.bytes.device
        self.main, self.symbols = program.functions["main"], symbols(program)
        self.work = Workspace(self.device)
        self._held: dict[tuple[Param, int | None], Operand] = {}

    def run(self, step: Step) -> torch.Tensor:
        """Queue one step; the logits [seqs, vocab], which lie in the block until the next one.

        They are f32, or what a last cast would have widened.
        """
        return Run(self, step).main()

    def weight(self, p: Param, layer: int | None) -> Operand:
        """The value of a weight in a layer."""
        if (p, layer) not in self._held:
            self._held[p, layer] = self.weights(p, layer)
        return self._held[p, layer]


class Run:
    """One step of a program."""

    def __init__(self, runner: Runner, step: Step) -> None:
        self.runner, self.step, self.gaps = runner, step, Gaps()
        self.sizes = dict(zip(runner.symbols, (step.tokens, step.seqs), strict=False))

    def main(self) -> torch.Tensor:
        """Run ``main``."""
        f = self.runner.main
        values: dict[Value, Any] = {}
        for p in f.params:
            if p.type.elem == SEQS:
                values[p] = self.step
            elif p.type.elem == CACHES or isinstance(p.type.elem, Cached):
                values[p] = self.runner.caches[p.name]
            elif p.weight is None:
                values[p] = self.step.ids
        frame = Frame(None, values, f.roots)
        self._steps(f, frame)
        return frame.values[f.returns[0]]

    def _steps(self, f: Function, frame: Frame) -> None:
        for s, ends in zip(f.steps, f.ends, strict=True):
            match s:
                case Launch():
                    self._launch(s, frame, ends)
                case View():
                    self._view(s, frame)
                case Same():
                    frame.values[s.result] = frame.values[s.x]
                case Call():
                    self._call(s, frame, {}, ends)
                case Loop():
                    self._loop(s, frame, ends)
            for v in ends:
                self._free(v, frame)

    def _launch(self, s: Launch, frame: Frame, ends: Sequence[Value]) -> None:
        if s.kernel == "positions":
            frame.values[s.results[0]] = self.step.positions
            return
        args = [self._operand(a, frame) for a in s.args]
        self._take_over(s, frame, ends)
        outs = [self._place(r, frame) for r in s.results if not isinstance(r.type.elem, Cached)]
        self._renew(s, args, frame)
        if self.runner.dry:
            return
        if s.kernel == BODY:
            self._body(s, args, outs)
            return
        given = {"work": self.runner.work, "step": self.step}
        attrs = {k: resolve(v, self.sizes) for k, v in s.attrs.items()}
        LAUNCHERS[s.kernel](*outs, *args, **attrs, **{k: given[k] for k in s.given})
        self.runner.work.reset()

    def _take_over(self, s: Launch, frame: Frame, ends: Sequence[Value]) -> None:
        """Put the result where an operand lies that nothing else reads any more."""
        x, to = s.over, s.results[0]
        if isinstance(x, Value) and x in ends and x in frame.taken and x.type == to.type:
            frame.values[to], frame.taken[to] = frame.values[x], frame.taken.pop(x)

    def _place(self, v: Value, frame: Frame) -> Operand:
        """Memory for a value, where it has none yet."""
        if v not in frame.values:
            frame.values[v] = self._take(v, frame)
        return frame.values[v]

    def _take(self, v: Value, frame: Frame) -> Operand:
        size = room(v.type, self.sizes)
        start = self.gaps.take(size)
        frame.taken[v] = start, size
        return self.runner.block.operand(start, v.type, self.sizes)

    def _renew(self, s: Launch, args: Sequence[Any], frame: Frame) -> None:
        """Caches are renewed in place: the next one is the one before."""
        caches = [a for a in args if isinstance(a, (PagedCache, StateCache))]
        renewed = [r for r in s.results if isinstance(r.type.elem, Cached)]
        frame.values.update(zip(renewed, caches, strict=False))

    def _body(self, s: Launch, args: list[Any], outs: list[Operand]) -> None:
        """Run an op's body in torch, and copy what it makes to its place."""
        seen = [self._plain(a) for a in args]
        with self.runner.device:  # for what a body makes from nothing
            made = apply_node(s.node, seen, self.sizes)
        plain = [x for x in made if not isinstance(x, (PagedCache, StateCache))]
        for out, x in zip(outs, plain, strict=True):
            assert isinstance(out, torch.Tensor), f"{s.node.op.name}: a body makes no quantized value"
            out.copy_(x)

    def _plain(self, a: Any) -> Any:
        """What a body takes of an operand: tensors without scales, and sequences as the interpreter has."""
        if isinstance(a, Step):
            return Seqs(a.positions, a.starts, a.context, a.tables)
        return a.dequantized() if isinstance(a, Quantized) else a

    def _operand(self, a: Arg, frame: Frame) -> Any:
        if isinstance(a, Param) and a.weight is not None:
            return self.runner.weight(a, frame.layer)
        return frame.values[a] if isinstance(a, Value) else a

    def _view(self, s: View, frame: Frame) -> None:
        n, x = s.node, self._operand(s.x, frame)
        attrs = {k: resolve(v, self.sizes) for k, v in n.attrs.items()}
        match n.op.name:
            case "reshape":
                frame.values[n.result] = x.view(attrs["dims"])
            case "split":
                frame.values.update(zip(n.results, x.split(attrs["sizes"], attrs["dim"]), strict=True))
            case _:
                start = attrs["start"]
                length = shape(n.result.type.dims, self.sizes)[attrs["dim"]]
                frame.values[n.result] = x.narrow(attrs["dim"], start, length)

    # calls

    def _loop(self, s: Loop, frame: Frame, last: Sequence[Value]) -> None:
        """Run the calls of every pass; what is carried on lies where the pass before left it."""
        for p, v in zip(s.params, s.inits, strict=True):
            frame.values[p] = self._operand(v, frame)
            if v in last and v in frame.taken and lies_alone(v, s.values, frame.roots):
                frame.taken[p] = frame.taken.pop(v)
        calls = [c for c in s.body if isinstance(c, Call)]
        inside = {*s.params, *(r for c in calls for r in c.results)}
        ends = [[v for v in vs if v in inside] for vs in last_uses(calls, s.yields, {})]
        for i in s.indices:
            for c, over in zip(calls, ends, strict=True):
                self._call(c, frame, {s.var: i}, over)
            carried = [(frame.values[y], frame.taken.pop(y, None)) for y in s.yields]
            for v in (*s.params, *(r for c in calls for r in c.results)):
                self._free(v, frame)
            for p, (x, held) in zip(s.params, carried, strict=True):
                frame.values[p] = x
                if held is not None:
                    frame.taken[p] = held
        for r, p in zip(s.results, s.params, strict=True):
            frame.values[r] = frame.values[p]
            if p in frame.taken:
                frame.taken[r] = frame.taken.pop(p)

    def _free(self, v: Value, frame: Frame) -> None:
        if v in frame.taken:
            self.gaps.give(*frame.taken.pop(v))

    def _call(self, c: Call, frame: Frame, at: dict[str, int], ends: Sequence[Value]) -> None:
        """Run a function on the caller's values: those that end with it are its own, as its results are the
        caller's.
        """
        f = self.runner.program.functions[c.callee]
        caches = [frame.values[x.stack][x.index.at(at)] for x in (*c.slots, *c.reads)]
        data = [p for p in f.params if p.weight is None]
        given = [*(self._operand(a, frame) for a in c.args), *caches]
        inner = Frame(c.index.at(at) if c.index else None, dict(zip(data, given, strict=True)), f.roots)
        for p, a in zip(data, c.args, strict=False):
            if a in ends and a in frame.taken and lies_alone(a, c.args, frame.roots):
                inner.taken[p] = frame.taken.pop(a)
        self._steps(f, inner)
        for r, v in zip(c.results, f.returns, strict=False):
            if stored(r):
                self._give_back(r, v, frame, inner, f)
        for v in list(inner.taken):
            self._free(v, inner)

    def _give_back(self, r: Value, v: Value, frame: Frame, inner: Frame, f: Function) -> None:
        """Let ``r`` of the caller be what a function made as ``v``; a copy, if that is not its own."""
        x, root = inner.values[v], f.roots.get(v, v)
        if root in inner.taken and (not isinstance(x, torch.Tensor) or x.is_contiguous()):
            frame.values[r], frame.taken[r] = x, inner.taken.pop(root)
            return
        out = frame.values[r] = self._take(r, frame)
        assert isinstance(out, torch.Tensor)
        if not self.runner.dry:
            out.copy_(x)


def symbols(program: Program) -> tuple[str, ...]:
    """The symbols of tokens and sequences in flight, as the program calls them."""
    seqs = next((p.type.dims for p in program.module.main.data if p.type.elem == SEQS), ())
    return tuple(map(str, seqs))


def planned(program: Program, tokens: int, seqs: int) -> int:
    """Bytes of the block that the values of a step of so many tokens and sequences need."""
    if (tokens, seqs) not in program.room:
        program.room[tokens, seqs] = _counted(program, tokens, seqs)
    return program.room[tokens, seqs]


def _counted(program: Program, tokens: int, seqs: int) -> int:
    """By a run that launches nothing."""

    def weight(p: Param, layer: int | None) -> Operand:
        return stands_for(p.type)

    def ints(*dims: int) -> torch.Tensor:
        return torch.empty(dims, dtype=torch.int32, device="meta")

    caches = empty_caches(program.module, None, "meta")
    runner = Runner(program, weight, caches, Block(1 << 50, "meta"), dry=True)
    step = Step(ints(tokens), ints(tokens), ints(tokens), ints(seqs + 1), ints(seqs), {})
    run = Run(runner, step)
    run.main()
    return run.gaps.most
