"""irloom: any Hugging Face language model as a small typed IR, rewritten by passes, compiled, and served.

    m = irloom.trace("path/to/model")
    m, record = irloom.run_pipeline(m, "canonicalize, raise, outline")
    llm = irloom.LLM("path/to/model")
    llm.generate(["Hello"], irloom.SamplingParams(max_tokens=64))[0].text

Nothing heavy is loaded here: a name is imported from its room when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver import LLM, compile, run_pipeline, trace
    from .frontends.hf.aten.core import translates
    from .frontends.hf.blocks.core import replaces
    from .frontends.hf.recurrent import torch_op
    from .ir.errors import (
        CheckpointError,
        EngineMismatch,
        IRError,
        IrloomError,
        KernelError,
        PipelineError,
        RequestError,
        TraceError,
    )
    from .ir.graph import Module
    from .ir.op import op
    from .ir.parse import parse
    from .ir.recurrent import recurrent
    from .ir.show import show
    from .passes import Changes, NearMiss, NoMatch, Pass, Rewrite, RewritePass, apply
    from .runtime import SamplingParams
    from .viewer import view

__version__ = "0.1.0"

_ROOMS = {
    "driver": ("LLM", "compile", "run_pipeline", "trace"),
    "frontends.hf.aten.core": ("translates",),
    "frontends.hf.blocks.core": ("replaces",),
    "frontends.hf.recurrent": ("torch_op",),
    "ir.errors": (
        "CheckpointError",
        "EngineMismatch",
        "IRError",
        "IrloomError",
        "KernelError",
        "PipelineError",
        "RequestError",
        "TraceError",
    ),
    "ir.graph": ("Module",),
    "ir.op": ("op",),
    "ir.parse": ("parse",),
    "ir.recurrent": ("recurrent",),
    "ir.show": ("show",),
    "passes": ("Changes", "NearMiss", "NoMatch", "Pass", "Rewrite", "RewritePass", "apply"),
    "runtime": ("SamplingParams",),
    "viewer": ("view",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "LLM",
    "Changes",
    "CheckpointError",
    "EngineMismatch",
    "IRError",
    "IrloomError",
    "KernelError",
    "Module",
    "NearMiss",
    "NoMatch",
    "Pass",
    "PipelineError",
    "RequestError",
    "Rewrite",
    "RewritePass",
    "SamplingParams",
    "TraceError",
    "__version__",
    "apply",
    "compile",
    "op",
    "parse",
    "recurrent",
    "replaces",
    "run_pipeline",
    "show",
    "torch_op",
    "trace",
    "translates",
    "view",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'irloom' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    from .ir.garbage import uncollected

    with uncollected():  # modules stay: looking through all again and again takes a sixth of their import
        value = getattr(import_module(f"irloom.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
