"""Sequences to try a program on, long enough for what it does at windows, chunks and pages to show.

A window that is one too long changes nothing in a sequence that fits into it, and a cache that is read before
it is written is right in the first step. So lengths are chosen from the program: each boundary in it is
crossed by a prompt and by decoding, one sequence arrives late, and all are packed into the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from irloom.ir.elem import CACHES, SEQS, Cached, Paged, State
from irloom.ir.graph import Loop, Module, Node, Stmt, Value
from irloom.ir.ops import attention, block_index, partial_attention, sparse_index

from .sample import entry

LOOK_BACK = (attention, partial_attention, sparse_index, block_index)
"""Ops that see the tokens of their own step alone; recurrent ops with a ``carried`` twin do, too."""
REACH = ("window", "chunk", "block", "stride", "local")
"""Attributes that say how far tokens see, in tokens."""
MOST = 1024
"""Boundaries behind this many tokens are not crossed unless one asks for it: it takes time and memory."""
NEAR = 64
"""Boundaries up to this many tokens are crossed by a sequence each, larger ones by the longest."""
SHORT = ((0, 1, 1, 1), (2,), (0, 3, 1), (0, 0, 1), (1, 0, 2))
"""Sequences that come late, end early or pause: of programs that give last rows only, more last rows."""


@dataclass(frozen=True)
class Session:
    """``steps[i][s]`` tokens of sequence ``s`` in step ``i``; none crosses the boundaries ``missed``."""

    steps: tuple[tuple[int, ...], ...]
    seed: int = 0
    missed: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(map(sum, zip(*self.steps, strict=True)))

    def parts(self, whole: bool) -> Iterator[list[tuple[int, int, int]]]:
        """The steps: for each sequence in one its number, its tokens so far, its new ones.

        ``whole``: one step that brings all there is, for programs that keep nothing between steps.
        """
        done = [0] * len(self.lengths)
        for step in [self.lengths] if whole else self.steps:
            yield [(s, done[s], n) for s, n in enumerate(step) if n]
            done = [a + b for a, b in zip(done, step, strict=True)]

    def text(self) -> str:
        """For a file: tokens of each sequence by step, ``17 2 0; 16 0 1; 1 0 1``."""
        return "; ".join(" ".join(map(str, step)) for step in self.steps)

    @staticmethod
    def read(text: str, seed: int = 0) -> Session:
        """Back from ``text``; ``ValueError`` where it is none."""
        steps = tuple(tuple(map(int, step.split())) for step in text.split(";"))
        if len({len(step) for step in steps}) > 1 or min(map(min, steps)) < 0:
            raise ValueError(f"{text!r} is no session")
        session = Session(steps, seed)
        if not all(map(any, steps)) or not all(session.lengths):
            raise ValueError(f"{text!r} has an empty step or sequence")
        return session

    def __str__(self) -> str:
        return f"{len(self.lengths)} sequences of {list(self.lengths)} tokens in {len(self.steps)} steps"


def plan_session(modules: Sequence[Module], seed: int = 0, most: int = MOST) -> Session:
    """A session for programs that are compared with each other: it fits the boundaries of all of them.

    A program for a fixed number of tokens gets one step of so many.
    """
    if (fixed := _fixed(modules[0])) is not None:
        return Session((fixed,), seed)
    found = sorted({n for m in modules for n in boundaries(m)}) or [4]
    kept = [n for n in found if n <= most] or [min(most, 4)]
    chunks = [_chunks(max(kept)), *(_chunks(n) for n in kept[:-1] if n <= NEAR), *SHORT]
    steps = tuple(zip_longest(*chunks, fillvalue=0))
    return Session(steps, seed, tuple(n for n in found if n > most))


def _fixed(m: Module) -> tuple[int, ...] | None:
    """Tokens of each sequence where a program's types say how many there are; None where they do not."""
    seqs = next((p.type for p in entry(m).data if p.type.elem == SEQS), None)
    if seqs is None or not isinstance(seqs.dims[0], int):
        return None
    count = seqs.dims[1] if isinstance(seqs.dims[1], int) else 1
    return tuple(seqs.dims[0] // count + (i < seqs.dims[0] % count) for i in range(count))


def _chunks(boundary: int) -> list[int]:
    """A prompt in two parts that ends before the boundary, then decoding across it."""
    prompt = max(boundary - 1, 2)
    return [(prompt + 1) // 2, prompt // 2, 1, 1, 1]


def boundaries(m: Module) -> set[int]:
    """Numbers of tokens at which something in the program changes."""
    out: set[int] = set()
    for f in m.funcs.values():
        for n in (n for n in f.nodes if "seqs" in n.op.operands):
            out.update(_reach(n))
        for v in (*f.params, *_values(f.body)):
            match v.type.elem:
                case Paged(page=page, window=window):
                    out.update((page, 2 * page, *([window] if window else [])))
                case State(every=every):
                    out.add(every)
                case _:
                    pass
    return out


def _reach(n: Node) -> Iterator[int]:
    attrs = {k: v for k, v in n.attrs.items() if isinstance(v, int) and not isinstance(v, bool)}
    yield from (v for k, v in attrs.items() if k in REACH and v > 1)
    if "topk" in attrs:
        yield attrs.get("block", attrs.get("stride", 1)) * (attrs["topk"] + 1)


def _values(body: Sequence[Stmt]) -> Iterator[Value]:
    for s in body:
        if isinstance(s, Loop):
            yield from _values(s.body)
        if isinstance(s, Node):
            yield from s.results


def in_steps(m: Module) -> bool:
    """Whether a program can go on from step to step: all that looks back reads what earlier steps have kept.

    A program of which only some layers have caches (``kv-cache`` with fuel for those) takes all in one step.
    """
    kept = any(isinstance(p.type.elem, Cached) or p.type.elem == CACHES for p in entry(m).data)
    return kept and not any(n.op in LOOK_BACK or n.op.carried for f in m.funcs.values() for n in f.nodes)
