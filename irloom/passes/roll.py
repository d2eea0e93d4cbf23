"""Calls that repeat in a period become a loop over the layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from irloom.ir.graph import Builder, Call, Func, Index, Loop, Stmt, Value

Place = tuple[int, int]
"""A result of a call: which call, counted from the start of an iteration, and which of its results."""


def roll(main: Func) -> None:
    """Replace runs of calls by loops, in place, so that the fewest statements remain; name the results."""
    runs = [(k, list(g)) for k, g in groupby(main.body, key=lambda s: isinstance(s, Call))]
    made = {r for calls, run in runs if calls for s in run for r in s.results}
    names = Builder(main, taken={v.name for v in _defined(main) if v not in made})
    body: list[Stmt] = []
    swap: dict[Value, Value] = {}
    for calls, run in runs:
        body += _Run([s for s in run if isinstance(s, Call)], main).rolled(names, swap) if calls else run
    main.body = body
    main.replace_uses(swap)


def count_rounds(loop: Loop) -> None:
    """Let a loop count its rounds, in place: its calls are numbered by multiples, ``layer[4*i + 1]``."""
    for c in loop.body:
        if isinstance(c, Call) and c.index and c.index.var:
            c.index = Index(loop.var, c.index.at({loop.var: loop.start}), c.index.times * loop.step)
    loop.start, loop.stop, loop.step = 0, len(loop.indices), 1


def rename_carried(loop: Loop) -> None:
    """Call what a loop carries as what enters it is called now."""
    new = {p.name: v.name for p, v in zip(loop.params, loop.inits, strict=True)}
    for v in {*loop.params, *loop.results, *loop.yields, *(r for s in loop.body for r in s.results)}:
        v.name = new.get(v.name, v.name)


def _base(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _defined(f: Func) -> list[Value]:
    return [*f.params, *(r for s in f.body for r in s.results)]


@dataclass(frozen=True)
class _Carry:
    """A value that an iteration hands to the next: ``init`` enters the first, every one makes it at ``made``.

    ``read`` is the last call of an iteration that reads what the one before made.
    """

    init: Value
    made: Place
    read: int


class _Run:
    """A run of calls with nothing between them. A period is a start, a length and how often it repeats."""

    def __init__(self, calls: list[Call], main: Func) -> None:
        self.calls = calls
        self.numbers = [c.index.offset if c.index and not c.slots else None for c in calls]
        self.made: dict[Value, Place] = {
            r: (q, k) for q, c in enumerate(calls) for k, r in enumerate(c.results)
        }
        self.reads: dict[Value, list[int]] = {}
        for q, c in enumerate(calls):
            for a in c.args:
                self.reads.setdefault(a, []).append(q)
        after = main.body[main.body.index(calls[-1]) + 1 :]
        for v in {v for s in after for v in s.values} | set(main.returns):
            self.reads.setdefault(v, []).append(len(calls))

    def rolled(self, names: Builder, swap: dict[Value, Value]) -> list[Stmt]:
        """The run as loops and calls; ``swap`` takes the values that loops make in place of calls."""
        out: list[Stmt] = []
        s = 0
        for p, r in self.cheapest():
            if r > 1:
                out.append(self.loop(s, p, r, names, swap))
            else:
                for v in self.calls[s].results:
                    v.name = names.fresh(_base(v.name))
                out.append(self.calls[s])
            s += p * r
        return out

    def cheapest(self) -> list[tuple[int, int]]:
        """The periods, one after the other, that make the fewest statements; found from the last call on."""
        n = len(self.calls)
        best: list[tuple[int, int, int]] = [(0, 0, 0)] * (n + 1)
        for s in range(n - 1, -1, -1):
            ways = [(1 + p + best[s + p * r][0], p, r) for p, r in self.periods(s)]
            best[s] = min(
                [*ways, (1 + best[s + 1][0], n, 1)], key=lambda way: (way[0], -way[1] * way[2] * (way[2] > 1))
            )
        out: list[tuple[int, int]] = []
        s = 0
        while s < n:
            _, p, r = best[s]
            out.append((p, r) if r > 1 else (1, 1))
            s += p * r if r > 1 else 1
        return out

    def periods(self, s: int) -> Iterator[tuple[int, int]]:
        """Every period from call ``s`` on that makes a loop, with its most repetitions."""
        found: list[tuple[int, int]] = []
        for p in range(1, (len(self.calls) - s) // 2 + 1):
            r = self.repeats(s, p)
            if any(p % q == 0 and q * n >= p * r for q, n in found):
                continue
            while r > 1 and self.carries(s, p, r) is None:
                r -= 1
            if r > 1:
                found.append((p, r))
                yield p, r

    def repeats(self, s: int, p: int) -> int:
        """How often callees repeat while the layer numbers grow by one step."""
        number, base = self.numbers, self.numbers[s]
        if base is None or any(x is None or x < base for x in number[s : s + p]):
            return 1
        end = s + p
        step = (number[end] or 0) - base
        while end < len(self.calls):
            now, then = number[end], number[end - p]
            same = self.calls[end].callee == self.calls[end - p].callee
            if not same or now is None or then is None or now - then != step:
                break
            end += 1
        return (end - s) // p if step > 0 else 1

    def carries(self, s: int, p: int, r: int) -> list[_Carry] | None:
        """What the loop hands on; None when the dataflow is not that of a loop."""
        inits: dict[Place, Value] = {}
        read: dict[Place, int] = {}
        for j in range(p):
            for a, first in enumerate(self.calls[s + j].args):
                given = [self.calls[s + t * p + j].args[a] for t in range(r)]
                start = self.made.get(first, (-1, 0))
                if start[0] < s and all(v is first for v in given):
                    continue
                at = [self.made.get(v, (-1, 0)) for v in given]
                places = {(q - s - t * p, k) for t, (q, k) in enumerate(at) if t}
                if len(places) > 1:
                    return None
                (back, k) = places.pop()
                if back >= 0:
                    if start != (s + back, k):
                        return None
                elif back >= -p and start[0] < s and inits.setdefault((back + p, k), first) is first:
                    read[back + p, k] = j
                else:
                    return None
        carries = [_Carry(init, made, read[made]) for made, init in sorted(inits.items(), key=lambda x: x[0])]
        return carries if self.closed(s, p, r, carries) else None

    def closed(self, s: int, p: int, r: int, carries: list[_Carry]) -> bool:
        """Whether only carried values leave, nothing else reads what enters, and each can keep its name."""
        end = s + p * r
        inits = {c.init for c in carries}
        if len(inits) < len(carries) or any(q >= s + p for v in inits for q in self.reads[v]):
            return False
        carried = {c.made for c in carries}
        for q in range(s, end):
            for k, v in enumerate(self.calls[q].results):
                if any(x >= end for x in self.reads.get(v, [])) and (q - end + p, k) not in carried:
                    return False
        return all(c.read <= c.made[0] for c in carries)

    def loop(self, s: int, p: int, r: int, names: Builder, swap: dict[Value, Value]) -> Loop:
        """The loop, made of the calls of its first iteration."""
        carries, body = self.carries(s, p, r) or [], self.calls[s : s + p]
        inits = [swap.get(c.init, c.init) for c in carries]
        params = [Value(v.name, v.type) for v in inits]
        yields = [body[c.made[0]].results[c.made[1]] for c in carries]
        results = [Value(v.name, y.type) for v, y in zip(inits, yields, strict=True)]
        for c, y, result in zip(carries, yields, results, strict=True):
            y.name = result.name
            swap[self.calls[s + (r - 1) * p + c.made[0]].results[c.made[1]]] = result
        base = self.numbers[s] or 0
        step = (self.numbers[s + p] or 0) - base
        enter = {c.init: param for c, param in zip(carries, params, strict=True)}
        for j, call in enumerate(body):
            call.args = [enter.get(a, a) for a in call.args]
            call.index = Index("i", (self.numbers[s + j] or 0) - base)
        self.name(s, p, carries, [v.name for v in inits], names)
        order = list(dict.fromkeys(v.name for call in body for v in call.results))
        four = sorted(zip(inits, params, yields, results, strict=True), key=lambda x: order.index(x[0].name))
        lists = [list(x) for x in zip(*four, strict=True)] or [[], [], [], []]
        return Loop("i", base, base + r * step, step, lists[0], lists[1], list(body), lists[2], lists[3])

    def name(self, s: int, p: int, carries: list[_Carry], names_in: list[str], names: Builder) -> None:
        """Name what stays inside an iteration after a carried value that is no longer needed."""
        free = [c.read for c in carries]
        made = {c.made for c in carries}
        for j in range(p):
            taken: set[int] = set()
            for k, v in enumerate(self.calls[s + j].results):
                if (j, k) in made:
                    continue
                last = max((q - s for q in self.reads.get(v, [])), default=j)
                fit = [
                    n
                    for n, c in enumerate(carries)
                    if free[n] <= j < c.made[0]
                    and last <= c.made[0]
                    and n not in taken
                    and c.init.type == v.type
                ]
                fit.sort(key=lambda n: carries[n].made[1] != k)
                if fit:
                    free[fit[0]] = last
                    taken.add(fit[0])
                    v.name = names_in[fit[0]]
                else:
                    v.name = names.fresh(_base(v.name))
