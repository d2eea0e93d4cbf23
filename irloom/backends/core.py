"""What a backend is: IR in, an engine directory out, and back an ``Engine`` that the runtime drives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import PipelineError
from irloom.ir.graph import Module
from irloom.ir.plugins import Group, fulfils
from irloom.runtime.core import Engine

START = ("canonicalize", "raise", "canonicalize", "outline", "absorb-mla", "gather-logits")
"""Passes that every target's pipeline begins with: a traced module as blocks, with logits of last rows."""

Report = Callable[[str, int, int], None]
"""``report(stage, done, total)``: how far a build is, in what the stage counts. What follows a colon in the
stage is what it is at now.
"""


def quiet(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Limits:
    """Run-time settings of an engine; none of them needs a rebuild.

    ``max_tokens`` tokens of one step, ``max_seqs`` sequences of one step, ``max_context`` tokens of one
    sequence (None: what the model was made for, as far as the pages reach), ``memory`` bytes for caches
    (None: what ``max_seqs`` sequences of ``max_context`` need, but at most a quarter of the machine's),
    ``threads`` (None: every core). With ``batch_invariant`` a request's greedy text is the same alone and in
    any batch: on ``cuda`` kernels then run one way for all sizes, and slower.
    """

    max_tokens: int = 512
    max_seqs: int = 64
    max_context: int | None = None
    memory: int | None = None
    threads: int | None = None
    batch_invariant: bool = False

    def context(self, longest: int) -> int:
        """Tokens a sequence may have, of a model made for ``longest``."""
        return min(longest, self.max_context or 8192)


class Backend(Protocol):
    """A target. ``pipeline`` is its default, ``dtype`` the element it computes in.

    What an engine has by a name that begins with one of ``later`` is checked while ``open`` reads it, which
    waits for ``EngineReader.checked``; all else is checked before.
    """

    name: str
    pipeline: tuple[str, ...]
    dtype: str
    later: tuple[str, ...]

    def lacks(self) -> str | None:
        """What this machine lacks to build for the target; None when it is ready."""
        ...

    def lowered(self, m: Module) -> str:
        """The program that the target runs, as text."""
        ...

    def fallbacks(self, m: Module) -> dict[str, int]:
        """Ops that run their reference body here, and how many nodes of ``m`` do."""
        ...

    def declined(self, m: Module) -> dict[str, str]:
        """Why ops that have a kernel run their body all the same: ``layer.y: `x` is bf16[T, 8]: ...``."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """What an engine built here depends on beside the CPU and irloom: a library, a GPU."""
        ...

    def prepare(self) -> None:
        """Start what a build needs beside the trace, such as compiling kernels, in the background."""
        ...

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """Put everything that ``open`` needs into ``out``."""
        ...

    def wake(self) -> None:
        """Start what ``open`` needs beside the engine's files, in the background, while those are checked."""
        ...

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """An engine that runs; ``EngineMismatch`` where it was built for another machine."""
        ...


def usual_limits(target: Backend) -> Limits:
    """The limits of an engine where nothing is said: a target may have its own, as ``limits``."""
    return getattr(target, "limits", Limits())


How = Literal["native", "composed", "outside"]


@dataclass(frozen=True)
class Expressed:
    """How the nodes of an op become layers of the library that a target builds networks with.

    ``how`` is ``native`` (one layer, but for casts and views), ``composed`` (of several) or ``outside``: the
    op runs its body between two networks, for ``reason``. ``layers`` are the kinds of layers, ``form`` which
    of several ways was taken, and why; ``nodes`` how many nodes of the program it says this of.
    """

    op: str
    how: How
    nodes: int
    layers: tuple[str, ...] = ()
    reason: str | None = None
    form: str = ""

    @property
    def said(self) -> str:
        """Why it is outside; else its layers and its form."""
        return self.reason or "; ".join(filter(None, [", ".join(self.layers), self.form]))

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class Networks:
    """A program as networks of a library: how many ``segments`` one after another, and each op in them."""

    segments: int
    ops: tuple[Expressed, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing runs between networks."""
        return all(op.how != "outside" for op in self.ops)


@runtime_checkable
class NetworkBackend(Backend, Protocol):
    """A target that builds networks of a library's layers. What becomes of each op is known before that."""

    def networks(self, m: Module) -> Networks:
        """What becomes of a module whose pipeline has run."""
        ...


@dataclass(frozen=True)
class Kernels:
    """A program as launches of kernels: how many its longest function makes, a layer as a rule; ``bodies``,
    the ops that run their reference body instead, and why; and whether whole steps are ``graphs``.
    """

    launches: int
    graphs: bool
    bodies: Mapping[str, str]


@runtime_checkable
class KernelBackend(Backend, Protocol):
    """A target that launches kernels of its own. What each op becomes is known before anything is built."""

    def kernels(self, m: Module) -> Kernels:
        """What becomes of a module whose pipeline has run."""
        ...


BUILT_IN = {
    "cpu": "irloom.backends.cpu.backend",
    "cuda": "irloom.backends.cuda.backend",
    "onnx": "irloom.backends.onnx.backend",
    "reference": "irloom.backends.reference.backend",
    "tensorrt": "irloom.backends.tensorrt.backend",
}
"""Targets by name; the module of each is loaded when it is used."""

PLUGINS = Group[Backend](
    "irloom.backends", "target", PipelineError, fulfils(Backend), lambda name: name in BUILT_IN
)
"""Targets of installed packages: an entry point of ``irloom.backends`` names a class or what it makes."""


def backend(name: str) -> Backend:
    """The backend called ``name``; ``PipelineError`` lists what there is."""
    if name in PLUGINS:
        return PLUGINS.load(name)
    if name not in BUILT_IN:
        raise PipelineError(f"no target {name!r}", hint=f"there are {', '.join(backends())}")
    return import_module(BUILT_IN[name]).BACKEND


def backends() -> list[str]:
    """The names of all targets, irloom's own first; none is loaded."""
    return list(dict.fromkeys([*BUILT_IN, *PLUGINS]))


def loadable() -> list[str]:
    """The names of the targets that load; what does not is warned of."""
    return [*BUILT_IN, *PLUGINS.every()]
