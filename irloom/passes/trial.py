"""Programs run on one session, with the same weights and inputs, and compared row by row.

Every program of a pipeline is run once: what one pass made is what the next one finds. A program without
caches takes each sequence whole, one with caches takes it in steps. Rows that an earlier program has given
and a later one gives no more (of all tokens but the last) are kept to compare with, until a pass is lossy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from irloom.ir.errors import IRError, IrloomError
from irloom.ir.graph import Func, Module, Node
from irloom.ir.interp import Interpreter

from .by_layer import depth, hidden_states
from .core import Pass
from .feed import Feed, renew
from .noise import Noise, coarsest, disturber, noise_between
from .report import FLOOR, LOST, Report, report, row_errors
from .rows import Key, Rows, Table, Taken, collect, dims_of, keyed
from .sample import entry, layer_of
from .session import Session, in_steps
from .shared_weights import SharedWeights

DRAWS = {torch.float64: 1, torch.float32: 1, torch.float16: 2, torch.bfloat16: 2}
"""How often a program is disturbed to see what rounding does to it."""
MORE, WIDER, FEW = 6, 4.0, 0.05
"""Where no more than this share of rows is wrong, so many more draws, so much wider, tell which may turn."""


@dataclass
class Outcome:
    """What a program gave: its steps, and the rows of the hidden state behind each layer, if asked for."""

    module: Module
    steps: list[Taken]
    layers: Table = field(default_factory=dict[str, Rows])


@dataclass(frozen=True)
class Compared:
    """One pass on a session: the worst of its outputs, and the hidden state behind each layer."""

    report: Report
    layers: dict[str, Report] = field(default_factory=dict[str, Report])


class Trial:
    """A session with weights, on a device. ``by_layer`` also looks at the hidden state behind each layer."""

    def __init__(self, session: Session, weights: SharedWeights, by_layer: bool = False) -> None:
        self.session, self.weights, self.by_layer = session, weights, by_layer
        self.feed = Feed(session, weights.device)
        self._last: Outcome | None = None
        self._known: list[Table] = []
        self._noise: dict[torch.dtype, Noise] = {}
        self._turned: tuple[Outcome, frozenset[Key]] | None = None

    def start(self, m: Module) -> None:
        """Run the program that the first pass finds; what was known is forgotten."""
        self._last, self._known = self.run(m), []

    def compare(self, after: Module, p: Pass) -> Compared:
        """Run ``after``, which ``p`` made of the program that was run last; it is then the last."""
        new = self.run(after)
        out = self.compared(new, p)
        self.accept(new, p)
        return out

    def accept(self, new: Outcome, p: Pass) -> None:
        """Let later programs be compared with this one; exact rows of earlier ones stay known."""
        assert self._last is not None, "start() runs the first program"
        old = collect(entry(self._last.module), self._last.steps, self.session.lengths)
        self._last, self._known = new, [] if p.budget() else [old, *self._known]

    def compared(self, new: Outcome, p: Pass) -> Compared:
        """What a program gave against the one that was run last."""
        assert self._last is not None, "start() runs the first program"
        old, lengths = self._last, self.session.lengths
        f, budget = entry(new.module), min(p.budget() * depth(old.module) ** 0.5, LOST)
        expected = [replace(s, outputs=p.expected(new.module, s.inputs, s.outputs)) for s in old.steps]
        known = [collect(f, expected, lengths), collect(entry(old.module), old.steps, lengths), *self._known]
        got = {
            name: rows
            for name, rows in collect(f, new.steps, lengths).items()
            if not budget or not name.startswith("cache")
        }
        found = [r for name, rows in got.items() if (r := self._rows(name, rows, known, budget)) is not None]
        if not found:
            raise IRError(f"{f.name}: the programs before and after have no output in common")
        layers = {
            name: r
            for name, rows in new.layers.items()
            if (r := self._rows(name, rows, [old.layers], budget)) is not None
        }
        return Compared(max(found, key=lambda r: r.excess), layers)

    def _rows(self, name: str, got: Rows, known: Sequence[Table], budget: float) -> Report | None:
        """One output against the newest rows that earlier programs gave of it; None where there are none."""
        left, keys, parts = list(got.keys), list[Key](), list[torch.Tensor]()
        for rows in (table[name] for table in known if name in table):
            has = set(rows.keys)
            if common := [k for k in left if k in has]:
                keys += common
                parts.append(rows.at(common))
                left = [k for k in left if k not in has]
        if not keys:
            return None
        want, have = torch.cat(parts) if len(parts) > 1 else parts[0], got.at(keys)
        if want.shape != have.shape or want.dtype != have.dtype:
            if not name.startswith("output"):
                return None
            raise IRError(
                f"{name}: {have.dtype} {list(have.shape)}, expected {want.dtype} {list(want.shape)}"
            )
        logits = name == "output 0" and want.ndim == 2 and want.is_floating_point() and want.shape[1] > 1
        made = report(want, have, f"{name}, {self.session}", budget=budget, logits=logits)
        if made.ok or budget or want.dtype not in FLOOR or made.error == torch.inf:
            return made
        return self._settled(made, want, have, keys)

    def _settled(self, made: Report, want: torch.Tensor, have: torch.Tensor, keys: Sequence[Key]) -> Report:
        """A report that is past the floor, with what rounding does to the program taken into account."""
        noise = self._noise_of(self._last_run)
        allowed = noise.allowed(want.dtype)
        settled = self._without(noise.unstable, made, want, have, keys, allowed)
        far = row_errors(want, have) > allowed
        if settled.ok or len(far) != len(keys) or far.float().mean() > FEW:
            return settled
        return self._without(noise.unstable | self._turning(), made, want, have, keys, allowed)

    def _without(
        self, unstable: Set[Key], made: Report, want: torch.Tensor, have: torch.Tensor,
        keys: Sequence[Key], allowed: float,
    ) -> Report:  # fmt: skip
        """The report on the rows that rounding does not turn; on all where it turns most of them."""
        stable = [i for i, k in enumerate(keys) if k not in unstable]
        lost = len(keys) - len(stable)
        if 2 * lost > len(keys):
            return replace(made, unstable=lost)
        if lost:
            chosen = torch.tensor(stable, device=want.device)
            want, have = want[chosen], have[chosen]
        return replace(report(want, have, made.where, allowed, logits=made.kl is not None), unstable=lost)

    @property
    def _last_run(self) -> Outcome:
        assert self._last is not None, "start() runs the first program"
        return self._last

    def _noise_of(self, made_by: Outcome) -> Noise:
        """What rounding does to a program: measured once for each element that programs compute in."""
        elem = coarsest(made_by.module)
        if elem not in self._noise:
            self._noise[elem] = self._disturbed(made_by, range(DRAWS[elem]), 1.0)
        return self._noise[elem]

    def _turning(self) -> frozenset[Key]:
        """Rows that more rounding turns: of the program at hand, for where it turns depends on it."""
        if self._turned is None or self._turned[0] is not self._last_run:
            wider = self._disturbed(self._last_run, range(10, 10 + MORE), WIDER)
            self._turned = self._last_run, wider.unstable
        return self._turned[1]

    def _disturbed(self, clean: Outcome, seeds: Iterable[int], units: float) -> Noise:
        f, lengths = entry(clean.module), self.session.lengths
        moved = (
            collect(f, self.run(clean.module, disturber(seed, self.weights.device, units)).steps, lengths)
            for seed in seeds
        )
        return noise_between(collect(f, clean.steps, lengths), moved, coarsest(clean.module))

    def run(self, m: Module, disturb: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Outcome:
        """The program on every step of the session; caches go from step to step."""
        f = entry(m)
        watch = hidden_states(m) if self.by_layer and disturb is None else {}
        tokens, count = dims_of(f)
        out = Outcome(m, [])

        def observe(n: Node, results: tuple[Any, ...], layer: int | None) -> None:
            for r, x in zip(n.results, results, strict=True):
                if r in watch:
                    label = layer if watch[r] is None else watch[r]
                    keys, rows = keyed(r.type, x, who, len(out.steps), tokens, count)
                    out.layers.setdefault(f"layer {label}", Rows()).add(keys, rows)

        program = Interpreter(
            m,
            device=self.weights.device,
            observe=observe if watch else None,
            weights=self.weights.of(m),
            disturb=disturb,
            keep=False,
        )
        held = self.feed.caches(m)
        with torch.inference_mode():
            for who in self.session.parts(whole=not in_steps(m)):
                given = [self.feed.given(m, p, who, held) for p in f.data]
                made = _ran(program, f, given)
                inputs = [None if p.name in held else x for p, x in zip(f.data, given, strict=True)]
                out.steps.append(Taken(who, inputs, made))
                renew(held, f.data, made)
        return out


def _ran(program: Interpreter, f: Func, given: Sequence[Any]) -> tuple[Any, ...]:
    """A step of a program; ``IRError`` where an op's body does not take what it is given."""
    try:
        return program(*given, func=f.name, layer=layer_of(f))
    except IrloomError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as e:
        why = str(e).splitlines()[0] if str(e) else "no message"
        raise IRError(f"{f.name}: the program does not run: {type(e).__name__}: {why}") from e
