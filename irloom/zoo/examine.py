"""Take one architecture through irloom, column by column."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import torch

from irloom import __version__
from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import Limits, backend, quiet
from irloom.backends.machine import compiler
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import import_tiny
from irloom.frontends.hf.trace import trace_config
from irloom.frontends.hf.trace_errors import origin
from irloom.ir.elem import ELEMS
from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline
from irloom.passes.raised import Raised, measure
from irloom.zoo.core import NEEDS, Row
from irloom.zoo.models import Specimen, full_size
from irloom.zoo.parting import parting
from irloom.zoo.serve import Script, Stepped, relative, serve

TOLERANCE = 1e-4
"""For logits of the traced program, relative to the largest one."""

SERVED = 2e-4
"""For logits of an engine, which computes a sum in other parts than the library does."""

ALONE = (37, 1, 12)
PACKED = (5, 26, 1, 14)
PLAN = "kv-plan(page=4, snapshot=8)"
"""Sequences of some dozens of tokens then have several pages and snapshots, and windows give some back."""

STEP_TOKENS, CONTEXT = 8, 64
KNOWN = 25
"""Tokens of a sequence that a later one begins with."""


def examine(name: str, columns: Sequence[str] | None = None) -> Row:
    """Every column of one architecture, or only ``columns`` and those that they need."""
    return _Examination(name, columns).row


class Differs(Exception):
    """Something was computed, but not what the library computes."""


class _Examination:
    def __init__(self, name: str, columns: Sequence[str] | None) -> None:
        self.row = Row(name)
        self.specimen: Specimen
        self.module: Module
        wanted = _with_needs(columns)
        start = time.perf_counter()
        steps: list[tuple[str, Callable[[], None]]] = [
            ("built", self.build),
            ("traced", self.trace),
            ("logits", self.alone),
            ("ragged", self.packed),
            ("decode", lambda: self.serve("decode", "reference")),
            ("compiled", lambda: self.serve("compiled", "cpu")),
            ("raised", self.raise_),
        ]
        for column, step in steps:
            if column in wanted and getattr(self.row, NEEDS.get(column, ""), True) is True:
                self.attempt(column, step)
        self.row.seconds = round(time.perf_counter() - start, 2)
        self.row.settle(wanted)

    def attempt(self, column: str, step: Callable[[], None]) -> None:
        """Fill a column; whatever goes wrong is the reason."""
        try:
            step()
            setattr(self.row, column, True)
        except Exception as error:
            setattr(self.row, column, reason(error))

    def build(self) -> None:
        self.specimen = Specimen.of(self.row.name)
        self.row.model_class = type(self.specimen.model).__name__
        logits = self.specimen.logits(self.specimen.draw(24, 0))
        if not logits.isfinite().all():
            raise Differs("the library's own logits are not finite")

    def trace(self) -> None:
        self.module, _ = import_tiny(self.specimen.config, self.specimen.model)
        self.module.model = self.row.name

    def alone(self) -> None:
        run = Interpreter(self.module, LiveCheckpoint(self.specimen.model))
        for n in ALONE:
            ids = self.specimen.draw(n, n)
            with torch.inference_mode():
                (ours,) = run(ids.int(), Seqs.of([n]))
            self.agree("logits", ours, [ids], f"with {n} tokens")

    def packed(self) -> None:
        parts = [self.specimen.draw(n, n) for n in PACKED]
        with torch.inference_mode():
            run = Interpreter(self.module, LiveCheckpoint(self.specimen.model))
            (ours,) = run(torch.cat(parts).int(), Seqs.of(PACKED))
        self.agree("ragged", ours, parts, f"with {len(PACKED)} sequences in one batch")

    def agree(self, column: str, ours: torch.Tensor, parts: Sequence[torch.Tensor], how: str) -> None:
        """``ours`` are the library's logits of the sequences ``parts``; where not, the block is named."""
        expected = torch.cat([self.specimen.logits(part) for part in parts])
        error = relative(ours, expected, expected)
        self.note(column, error)
        if not error <= TOLERANCE:
            where = parting(self.specimen, self.module, parts, TOLERANCE)
            raise Differs(f"logits differ by {error:.1e} {how}" + (f" (first {where})" if where else ""))

    def note(self, column: str, error: float) -> None:
        self.row.errors[column] = max(error, self.row.errors.get(column, 0.0))

    def serve(self, column: str, target: str) -> None:
        if target == "cpu" and not compiler():
            raise Differs("this machine has no C++ compiler")
        scripts = [self.script(33, 19, 1), self.script(26, 5, 2)]
        scripts.append(replace(self.script(21, 6, 3), arrives=6, priority=-1))  # one of the others makes room
        again = torch.cat([scripts[1].tokens[:KNOWN], self.specimen.draw(5, 4)])
        late = [Script(again, KNOWN + 1, self.specimen.logits(again))]
        with tempfile.TemporaryDirectory() as folder:
            engine = self.engine(target, Path(folder) / "engine")
            served = serve(engine, scripts, late)
        self.note(column, served.error)
        if not served.error <= SERVED:
            raise Differs(f"logits differ by {served.error:.1e}: {served.where}")
        short = all(
            pool.page <= KNOWN for pool in engine.pools
        )  # those of long strides hold a sequence whole
        if short and not (served.cached and served.preemptions):
            raise Differs(
                f"{served.cached} tokens of a known prefix were kept, {served.preemptions} sequences resumed"
            )

    def script(self, length: int, prompt: int, seed: int) -> Script:
        tokens = self.specimen.draw(length, seed)
        return Script(tokens, prompt, self.specimen.logits(tokens))

    def engine(self, target: str, out: Path) -> Stepped:
        """The model as an engine of a backend, with weights from memory."""
        made = backend(target)
        steps = [PLAN if step == "kv-plan" else step for step in made.pipeline]
        m, _ = run_pipeline(self.module, steps)
        settings = {"max_context": CONTEXT, "eos": [], "int8_activations": False}
        manifest = Manifest(target, m.model, steps, {"irloom": __version__}, {}, settings=settings)
        with EngineWriter(out, manifest) as writer:
            made.build(m, LiveCheckpoint(self.specimen.model), writer, quiet)
        limits = Limits(max_tokens=STEP_TOKENS, max_seqs=2, max_context=CONTEXT, threads=1)
        engine: Any = made.open(EngineReader(out), limits)
        return engine

    def raise_(self) -> None:
        found = measure(self.module)
        row = self.row
        row.flops_in_model_ops = round(found.share, 5)
        row.model_ops, row.tensor_ops, row.near_misses = found.model_ops, found.tensor_ops, found.near_misses
        if not found.enough:
            try:
                full = self.at_full_size()
            except (
                Exception
            ) as error:  # a default config that makes no model says nothing against the tiny one
                raise Differs(f"{found.lacking}; none of full size: {reason(error)}") from error
            row.flops_at_full_size = round(full.share, 5)
            if not full.enough:
                raise Differs(full.lacking)

    def at_full_size(self) -> Raised:
        """The same count where products outweigh arithmetic as they do in practice, without weights."""
        options = TraceOptions(dtype=ELEMS["bf16"], check=False)
        return measure(trace_config(full_size(self.row.name), options))


def _with_needs(columns: Sequence[str] | None) -> set[str]:
    if columns is None:
        return {*NEEDS, "built"}
    wanted = set(columns)
    for column in reversed(NEEDS):
        if column in wanted:
            wanted.add(NEEDS[column])
    return wanted | {"built"}


def reason(error: BaseException) -> str:
    """An error on one line: what, and the block and source line of the model where it happened."""
    if isinstance(error, Differs):
        return str(error)
    if isinstance(error, IrloomError):
        said = " ".join(error.message.split())
        where = _short(error.places[0]) if error.places else error.__cause__ and origin(error.__cause__)
        return f"{said} ({where})" if where else said
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} ({origin(error)})"


def _short(place: str) -> str:
    """A place with the file's name instead of its path."""
    return " ".join(PurePath(word).name if "/" in word and ":" in word else word for word in place.split())
