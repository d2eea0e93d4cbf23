"""A model traced, rewritten, compiled; an engine found again in the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from irloom import __version__
from irloom.backends.artifact import EngineReader, EngineWriter, Manifest, is_engine
from irloom.backends.core import Backend, Report, backend, quiet
from irloom.backends.locks import locked
from irloom.backends.machine import cpu_features
from irloom.backends.needs import Need, code, file_of, needs
from irloom.frontends.core import Frontend, TraceOptions, frontend_of, source
from irloom.frontends.hf.hub import find
from irloom.frontends.hf.remote import remote_code
from irloom.frontends.peft.frontend import Merged, identity
from irloom.frontends.store import cache_dir, extensions
from irloom.frontends.text import Text
from irloom.ir.elem import ELEMS, floating
from irloom.ir.errors import CheckpointError, EngineMismatch, PipelineError
from irloom.ir.graph import Module
from irloom.ir.op import OPS
from irloom.ir.plugins import HERE, origin, sources
from irloom.passes import PASSES, Pass, Record, run_pipeline, spell
from irloom.passes.pipeline import Pipeline

from .pipelines import CHOICE, Choice, available, passes_of, until

TEXT = Text()
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def trace(
    model: Any, dtype: str | None = None, layers: int | None = None, trust_remote_code: bool = False
) -> Module:
    """The program of a model: a path, a hub id, a config object of the library, or an ``nn.Module``.

    ``dtype`` is the element of weights and activations (default: as stored); ``layers`` keeps the first.
    ``trust_remote_code`` runs Python files that a directory brings with it; without, they are refused.
    """
    elem = floating(dtype) if dtype else None
    if isinstance(model, (str, Path)):
        path = find(str(model), trust_remote_code)
        return frontend_of(path).trace(path, TraceOptions(dtype=elem, layers=layers, trust=trust_remote_code))
    from irloom.frontends.hf import trace_hf

    return trace_hf(model, dtype=elem, layers=layers)


def rewritten(
    model: str | Path,
    choice: Choice = CHOICE,
    after: str | None = None,
    layers: int | None = None,
    trust_remote_code: bool = False,
) -> Module:
    """The program after the chosen pipeline, or after a part of it (see ``until``)."""
    return staged(model, choice, after, layers, trust_remote_code)[0]


def staged(
    model: str | Path,
    choice: Choice = CHOICE,
    after: str | None = None,
    layers: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[Module, Record]:
    """As ``rewritten``, with the record; an engine's program is the final one, and has none."""
    path = find(str(model), trust_remote_code)
    if is_engine(path):
        if after is not None:
            raise EngineMismatch(
                f"{path}: an engine holds its final program and no other",
                hint=f"name the model: after={after!r} is a stage of its pipeline",
            )
        return EngineReader(path).module(), Record()
    return record_of(path, choice, after, layers, trust_remote_code)[1:]


def record_of(
    model: str | Path,
    choice: Choice = CHOICE,
    after: str | None = None,
    layers: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[Module, Module, Record]:
    """The program as traced, as rewritten (see ``rewritten``), and the record of the passes between."""
    path = find(str(model), trust_remote_code)
    passes = until(passes_of(choice), after)
    traced = trace(path, backend(choice.target).dtype, layers, trust_remote_code)
    return traced, *run_pipeline(traced, passes)


def program(
    model: str | Path, choice: Choice = CHOICE, after: str | None = None, trust_remote_code: bool = False
) -> Module:
    """The program of a text or an engine as it is, of a model as ``rewritten``."""
    path = find(str(model), trust_remote_code)
    if TEXT.claims(path):
        return TEXT.trace(path, TraceOptions())
    return rewritten(path, choice, None if is_engine(path) else after, trust_remote_code=trust_remote_code)


def lowered(m: Module, target: str = "cpu") -> str:
    """The program that ``target`` runs, as text."""
    return backend(target).lowered(m)


def compile(
    model: Any,
    target: str = "cpu",
    pipeline: Pipeline | None = None,
    *,
    out: str | Path,
    adapter: str | Path | None = None,
    progress: Report | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    split: bool = True,
    cut: str | None = None,
) -> Path:
    """Build an engine directory and give its path; an engine there is replaced when the new one is whole.

    ``model`` is a path, a hub id, or an ``nn.Module``; ``tokenizer`` belongs to a module: a tokenizer object,
    or where its tokenizer.json is. ``adapter`` is a directory of PEFT's whose LoRA matrices are merged into
    the weights. Without ``split``, an op that the target cannot express is an error, else it runs its body.
    ``cut`` is for targets that build networks: ``"whole"``, ``"layer"`` for one a layer, or None for what
    is less to build.
    """
    report, out, target = progress or quiet, Path(out), available(target)
    passes = passes_of(Choice(target, pipeline))
    steps = [spell(p) for p in passes]
    front, path = source(model, tokenizer, trust_remote_code)
    made = backend(target)
    if adapter is not None:
        front = Merged(front, Path(adapter))
    options = TraceOptions(dtype=ELEMS[made.dtype], trust=trust_remote_code)
    made.prepare()
    report("trace", 0, 1)
    m = front.trace(path, options)
    report("trace", 1, 1)
    m, record = run_pipeline(m, passes, progress=report)
    report("passes", len(passes), len(passes))
    if not split:
        _refuse_split(made, m)
    facts, needed = front.facts(path), needs(m)
    manifest = Manifest(
        target=target,
        model=m.model,
        pipeline=steps,
        versions={"irloom": __version__, **{p: version(p) for p in ("torch", "transformers", "tokenizers")}},
        machine={"features": list(cpu_features())},
        rebuild=[
            *("irloom", "compile", str(path), "-o", str(out), "--target", target),
            *("--pipeline", ", ".join(steps)),
            *(["--adapter", str(adapter)] if adapter else []),
            *(["--trust-remote-code"] if trust_remote_code else []),
            *([] if split else ["--no-split"]),
            *(["--cut", cut] if cut else []),
            *_loaded(passes, needed),
        ]
        if isinstance(model, (str, Path))
        else [],
        needs=needed,
        settings={"max_context": facts.max_context, "eos": list(facts.eos), "int8_activations": True}
        | ({"cut": cut} if cut else {}),
    )
    report("tokenizer", 0, 1)
    with EngineWriter(out, manifest) as writer:
        _copy_tokenizer(front, path, writer)
        report("tokenizer", 1, 1)
        writer.write_json("record.json", _summary(record))
        made.build(m, front.checkpoint(path, options), writer, report)
    return out


def _refuse_split(target: Backend, m: Module) -> None:
    if bodies := target.fallbacks(m):
        op, nodes = next(iter(bodies.items()))
        why = f": {reason}" if (reason := target.declined(m).get(op)) else ""
        more = f", nor {', '.join(list(bodies)[1:])}" if len(bodies) > 1 else ""
        raise PipelineError(
            f"{m.model or 'the program'}: {target.name} cannot express {op} ({nodes} of them){more}{why}",
            hint="without --no-split such ops run their reference body",
        )


def _copy_tokenizer(front: Frontend, path: Path, writer: EngineWriter) -> None:
    """The tokenizer's files, as far as the model has one: without it, prompts are token ids."""
    try:
        folder = front.tokenizer(path)
    except CheckpointError as error:
        writer.manifest.settings["tokenizer"] = error.message
        return
    for name in TOKENIZER:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, writer.file(f"tokenizer/{name}"))


def _summary(record: Record) -> list[dict[str, Any]]:
    return [
        {
            "pass": s.name,
            "seconds": round(s.seconds, 4),
            "changes": s.changes.places,
            "near_misses": list(map(str, s.changes.near_misses)),
        }
        for s in record.steps
    ]


def engine_for(
    model: str | Path,
    target: str,
    pipeline: Pipeline | None,
    progress: Report,
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The engine of a model: itself, or one kept in the cache for this model, pipeline and machine."""
    path = find(str(model), trust_remote_code)
    if is_engine(path):
        if pipeline is not None:
            raise EngineMismatch(
                f"{path}: an engine's passes have run", hint="compile the model with this pipeline"
            )
        if adapter is not None:
            raise EngineMismatch(
                f"{path}: an engine's weights are final", hint="compile the model with the adapter"
            )
        return path
    passes = passes_of(Choice(target, pipeline))
    steps = [spell(p) for p in passes]
    frontend_of(path)
    which = identity(path, Path(adapter) if adapter else None)
    facts = [which, target, steps, list(cpu_features()), __version__, version("torch"), extensions()]
    facts += [backend(target).fingerprint()]
    facts += [code([HERE / "__init__.py"]), _plugins(passes)]
    facts += [trust_remote_code] if remote_code(path) else []
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    out = cache_dir() / "engines" / key
    if not is_engine(out):
        lock = cache_dir() / "engines" / f"{key}.lock"
        with locked(lock, waiting=lambda: progress("waiting for another build", 0, 0)):
            if not is_engine(out):  # nobody built it meanwhile
                compile(
                    path,
                    target,
                    passes,
                    out=out,
                    adapter=adapter,
                    progress=progress,
                    trust_remote_code=trust_remote_code,
                )
    return out


def _loaded(passes: Sequence[Pass], needed: Sequence[Need]) -> list[str]:
    """``--plugin FILE`` for each file of passes, ops or kernels that is in no package."""
    made = [origin(type(p)) for p in passes]
    files = [o.file for o in made if o.package is None] + [n.file for n in needed if n.package is None]
    files += map(str, PASSES.loaded)
    return [word for file in dict.fromkeys(files) for word in ("--plugin", file)]


def _plugins(passes: Sequence[Pass]) -> str:
    """A digest of code from outside of irloom: these passes, ops known by now, files loaded."""
    files = [*sources(map(type, passes)), *(file_of(op) for op in OPS), *PASSES.loaded]
    return code(f for f in files if not f.is_relative_to(HERE))
