"""The ONNX target: build exports the program with its weights, open runs the model in ONNX Runtime.

An engine holds ``model.onnx`` and, stored once, the weights that it names; other tools open it as it is. How
many slots there are, how long sequences get and how many tokens a step has is decided when it is opened.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.core import START, Limits, Networks, Report
from irloom.backends.machine import cores
from irloom.backends.pools import cache_plan, pools
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import PipelineError
from irloom.ir.graph import Module
from irloom.ir.plan import Pool, is_linear
from irloom.passes import run_pipeline
from irloom.runtime.core import Engine

from .engine import OnnxEngine, Sizes
from .export import MODEL, WEIGHTS, export, text
from .expressed import networks
from .lower import lower
from .session import BUILD, RUN, lacking, need, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxBackend:
    """See ``backends.core.Backend``."""

    name = "onnx"
    dtype = "f32"
    later: tuple[str, ...] = ()
    pipeline = (
        *START,
        "fuse-qkv",
        "kv-cache",
        "kv-plan(layout='linear')",
    )

    def lacks(self) -> str | None:
        """Packages."""
        return lacking(BUILD | RUN)

    def lowered(self, m: Module) -> str:
        """The model in ONNX's own notation."""
        need(BUILD)
        return text(m)

    def fallbacks(self, m: Module) -> dict[str, int]:
        """None: the whole program is one model. ``IRError`` names an op that no ONNX operators compute."""
        lower(m)
        return {}

    def declined(self, m: Module) -> dict[str, str]:
        """Which ops are not one operator of ONNX's, and why."""
        return dict(found.split(": ", 1) for found in lower(m).decomposed)

    def networks(self, m: Module) -> Networks:
        """See ``backends.core.NetworkBackend``."""
        return networks(lower(m))

    def fingerprint(self) -> dict[str, str]:
        """What wrote the model: its operators and files follow from that."""
        return {} if lacking(BUILD) else {package: version(package) for package in sorted(BUILD)}

    def prepare(self) -> None:
        """Say what is lacking before the model is traced."""
        need(BUILD)

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """The module, and the model with its weights."""
        need(BUILD)
        plan = cache_plan(m)
        if not is_linear(m):
            raise PipelineError(
                f"{m.model or 'the program'}: target onnx keeps a sequence in a slot of every cache",
                hint="its pipeline ends in kv-plan(layout='linear')",
            )
        out.write_program(m, plan)
        made = export(m, checkpoint, out.file(MODEL).parent, report)
        out.manifest.versions |= {package: version(package) for package in BUILD}
        out.manifest.settings["decomposed"] = dict(made.decomposed)

    def wake(self) -> None:
        """Nothing: a session needs its model."""

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """A session, and caches for as many sequences as ``limits`` allow."""
        need(RUN)
        m, model = engine.module(), engine.file(MODEL)
        session = _session(engine, model, limits.threads or cores())
        context = limits.context(int(engine.manifest.settings["max_context"]))
        sizes = Sizes(limits.max_tokens, limits.max_seqs, context)
        vocab = m.main.returns[0].type.dims[1]
        assert isinstance(vocab, int)
        weights = engine.file(WEIGHTS).stat().st_size
        return OnnxEngine(session, sizes, slots(m, limits, context), vocab, weights)


def slots(m: Module, limits: Limits, context: int) -> tuple[Pool, ...]:
    """Pools whose pages are slots for sequences of ``context`` tokens, however long those of the module are.

    A slot is a token longer than its sequence, so it is never full, none is kept for prefixes, and a sequence
    has the same slot in every pool.
    """
    planned, _ = run_pipeline(m.copy(), f"kv-plan(layout='linear', context={context + 1})")
    made = pools(planned, limits, context)
    return tuple(replace(p, pages=min(q.pages for q in made)) for p in made)


def _session(engine: EngineReader, model: Path, threads: int) -> InferenceSession:
    try:
        return open_session(model, threads)
    except Exception as error:  # ONNX Runtime's errors have no class in common but this
        reason = str(error).splitlines()[0]
        raise engine.refuse(f"ONNX Runtime {version('onnxruntime')} does not open it: {reason}") from error


BACKEND = OnnxBackend()
