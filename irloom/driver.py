"""From a model to an engine: trace, run the pipeline, build, open. What the API and all commands call."""

from __future__ import annotations

import hashlib
import json
import operator
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from . import __version__
from .backends.artifact import EngineReader, EngineWriter, Manifest, is_engine
from .backends.core import BACKENDS, Limits, Report, backend, quiet
from .backends.machine import cpu_features, read_bandwidth
from .frontends.core import Frontend, TraceOptions, frontend_of, source
from .frontends.hf.hub import find
from .frontends.hf.remote import remote_code
from .frontends.peft.frontend import Merged, identity
from .frontends.store import cache_dir, extensions
from .ir.elem import ELEMS
from .ir.errors import CheckpointError, EngineMismatch, PipelineError, RequestError
from .ir.graph import Module
from .ir.parse import parse
from .passes import Record, parse_pipeline, run_pipeline, spell
from .runtime import Loop, Output, SamplingParams

__all__ = ["LLM", "compile", "lowered", "measure", "rewritten", "run_pipeline", "targets", "trace"]

Prompt = str | Mapping[str, Any] | Sequence[int] | Sequence[Mapping[str, str]]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def trace(
    model: Any, dtype: str | None = None, layers: int | None = None, trust_remote_code: bool = False
) -> Module:
    """The program of a model: a path, a hub id, a config object of the library, or an ``nn.Module``.

    ``dtype`` is the element of weights and activations (default: as stored); ``layers`` keeps the first.
    ``trust_remote_code`` runs Python files that a directory brings with it; without, they are refused.
    """
    elem = ELEMS[dtype] if dtype else None
    if isinstance(model, (str, Path)):
        path = find(str(model), trust_remote_code)
        return frontend_of(path).trace(path, TraceOptions(dtype=elem, layers=layers, trust=trust_remote_code))
    from .frontends.hf import trace_hf

    return trace_hf(model, dtype=elem, layers=layers)


def rewritten(
    model: str | Path,
    target: str = "cpu",
    pipeline: str | None = None,
    after: str | None = None,
    layers: int | None = None,
    trust_remote_code: bool = False,
) -> Module:
    """The program after the target's pipeline, or after a part of it (``after="trace"`` runs none)."""
    path = find(str(model), trust_remote_code)
    if is_engine(path):
        return parse(EngineReader(path).read_text("module.irloom"))
    made = backend(target)
    m = trace(path, made.dtype, layers, trust_remote_code)
    steps = [spell(p) for p in parse_pipeline(pipeline if pipeline is not None else made.pipeline)]
    if after == "trace":
        return m
    if after is not None:
        names = [s.partition("(")[0] for s in steps]
        if after not in names:
            raise PipelineError(
                f"the pipeline has no pass {after!r}",
                hint=f"it has {', '.join(dict.fromkeys(names))}, and trace",
            )
        steps = steps[: len(names) - names[::-1].index(after)]
    return run_pipeline(m, steps)[0] if steps else m


def lowered(m: Module, target: str = "cpu") -> str:
    """The program that ``target`` runs, as text."""
    return backend(target).lowered(m)


def targets() -> dict[str, str | None]:
    """Each target and what it lacks on this machine; None when it is ready."""
    from .backends.machine import compiler

    return {name: None if name != "cpu" or compiler() else "a C++ compiler" for name in BACKENDS}


def available(target: str) -> str:
    """``target``; in place of ``cpu`` on a machine without a C++ compiler, ``reference``: torch, and slow."""
    return "reference" if target == "cpu" and targets()["cpu"] else target


def compile(
    model: Any,
    target: str = "cpu",
    pipeline: str | None = None,
    *,
    out: str | Path,
    adapter: str | Path | None = None,
    progress: Report | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> Path:
    """Build an engine directory and give its path; an engine there is replaced when the new one is whole.

    ``model`` is a path, a hub id, or an ``nn.Module``; ``tokenizer`` belongs to a module: a tokenizer object,
    or where its tokenizer.json is. ``adapter`` is a directory of PEFT's whose LoRA matrices are merged into
    the weights.
    """
    report, out, target = progress or quiet, Path(out), available(target)
    front, path = source(model, tokenizer, trust_remote_code)
    made = backend(target)
    if adapter is not None:
        front = Merged(front, Path(adapter))
    options = TraceOptions(dtype=ELEMS[made.dtype], trust=trust_remote_code)
    made.prepare()
    report("trace", 0, 1)
    m = front.trace(path, options)
    report("trace", 1, 1)
    steps = [spell(p) for p in parse_pipeline(pipeline if pipeline is not None else made.pipeline)]
    m, record = run_pipeline(m, steps, progress=report)
    report("passes", len(steps), len(steps))
    facts = front.facts(path)
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
        ]
        if isinstance(model, (str, Path))
        else [],
        settings={"max_context": facts.max_context, "eos": list(facts.eos), "int8_activations": True},
    )
    report("tokenizer", 0, 1)
    with EngineWriter(out, manifest) as writer:
        _copy_tokenizer(front, path, writer)
        report("tokenizer", 1, 1)
        writer.write_json("record.json", _summary(record))
        made.build(m, front.checkpoint(path, options), writer, report)
    return out


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
    pipeline: str | None,
    progress: Report,
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The engine of a model: itself, or one kept in the cache for this model, pipeline and machine."""
    path = find(str(model), trust_remote_code)
    if is_engine(path):
        if adapter is not None:
            raise EngineMismatch(
                f"{path}: an engine's weights are final", hint="compile the model with the adapter"
            )
        return path
    steps = [spell(p) for p in parse_pipeline(pipeline if pipeline is not None else backend(target).pipeline)]
    frontend_of(path)
    which = identity(path, Path(adapter) if adapter else None)
    facts = [which, target, steps, list(cpu_features()), __version__, version("torch"), _code(), extensions()]
    facts += [trust_remote_code] if remote_code(path) else []
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    out = cache_dir() / "engines" / key
    if not is_engine(out):
        compile(
            path,
            target,
            ", ".join(steps),
            out=out,
            adapter=adapter,
            progress=progress,
            trust_remote_code=trust_remote_code,
        )
    return out


def _code() -> str:
    """A digest of irloom's own code: an engine of another state of it is not used again."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(p for kind in ("*.py", "*.cpp", "*.h") for p in root.rglob(kind)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class LLM:
    """A model that answers, embedded in this process.

    ``model`` is a path, a hub id or an engine directory; anything but an engine is compiled first and kept in
    the cache, with the LoRA matrices of the directory ``adapter`` merged into its weights. It may also be an
    ``nn.Module`` with its ``tokenizer``, whose engine lives as long as this object. The rest are run-time
    settings, see ``backends.core.Limits``: ``max_tokens``, ``max_seqs``, ``max_context``, ``memory`` (bytes),
    ``threads``.
    """

    def __init__(
        self,
        model: Any,
        target: str | None = None,
        pipeline: str | None = None,
        progress: Report | None = None,
        adapter: str | Path | None = None,
        trust_remote_code: bool = False,
        tokenizer: Any = None,
        **limits: Any,
    ) -> None:
        report, chosen = progress or quiet, available(target or "cpu")
        if isinstance(model, (str, Path)) and tokenizer is None:
            folder = engine_for(model, chosen, pipeline, report, adapter, trust_remote_code)
        else:
            home = tempfile.mkdtemp(prefix="irloom-engine-")
            weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
            folder = compile(
                model,
                chosen,
                pipeline,
                out=Path(home) / "engine",
                adapter=adapter,
                progress=report,
                tokenizer=tokenizer,
            )
        report("open", 0, 1)
        reader = EngineReader(folder)
        if target is not None and available(target) != reader.manifest.target:
            raise EngineMismatch(f"{folder} was built for {reader.manifest.target}, not for {target}")
        reader.require({"irloom": reader.manifest.versions["irloom"]}, {"irloom": __version__})
        self.folder, self.manifest = folder, reader.manifest
        self.engine = backend(reader.manifest.target).open(reader, Limits(**limits))
        self.tokenizer = _tokenizer(reader)
        self.loop = Loop(self.engine, self.tokenizer, reader.manifest.settings["eos"])
        report("open", 1, 1)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Output]:
        """Answer all prompts together; outputs in their order.

        A prompt is text, ``{"prompt_token_ids": [...]}``, a list of ids, or the messages of a chat.
        """
        return self.loop.generate([self.encode(p) for p in prompts], params)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[str]:
        """The answer's text as it comes; leaving the iteration cancels the request and frees its pages."""
        deltas = self.loop.stream(self.encode(prompt), params)
        try:
            for delta in deltas:
                if delta.text:
                    yield delta.text
        finally:
            deltas.close()

    def encode(self, prompt: Prompt) -> str | list[int]:
        """A prompt as the loop takes it: text, or token ids."""
        if isinstance(prompt, str):
            self._need_tokenizer()
            return prompt
        if isinstance(prompt, Mapping):
            if set(prompt) != {"prompt_token_ids"}:
                raise RequestError(
                    f"prompt: {sorted(prompt)} is not understood", hint='text, or {"prompt_token_ids": [...]}'
                )
            return list(prompt["prompt_token_ids"])
        if prompt and isinstance(prompt[0], Mapping):
            return self._chat(prompt)
        return [operator.index(cast("int", i)) for i in prompt]

    def _need_tokenizer(self) -> None:
        if self.tokenizer is None:
            why = self.manifest.settings.get("tokenizer", "none was found")
            raise RequestError(
                f"prompt: the engine has no tokenizer ({why})",
                hint='give token ids: {"prompt_token_ids": [...]}',
            )

    def _chat(self, messages: Any) -> list[int]:
        from transformers import AutoTokenizer

        self._need_tokenizer()
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", trust_remote_code=False)
        if not tokenizer.chat_template:
            raise RequestError(
                f"{self.manifest.model} has no chat template: it continues text",
                hint="give a prompt instead of a chat",
            )
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def _tokenizer(reader: EngineReader) -> Any:
    if "tokenizer/tokenizer.json" not in reader.manifest.parts:
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(reader.file("tokenizer/tokenizer.json")))


@dataclass(frozen=True)
class Figures:
    """What ``measure`` found, medians: seconds, tokens per second, a share of the measured read bandwidth."""

    first_token_s: float
    decode_per_s: float
    bandwidth_share: float | None
    total_per_s: float
    output_per_s: float


def measure(
    llm: LLM, requests: int, prompt_tokens: int, new_tokens: int, repeats: int, progress: Report | None = None
) -> Figures:
    """One request alone, then ``requests`` together, on random tokens; medians of ``repeats`` runs."""
    import random

    draw, report = random.Random(0), progress or quiet
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)

    def prompt() -> list[int]:
        return [draw.randrange(llm.engine.vocab) for _ in range(prompt_tokens)]

    first, decode, total = [], [], []
    for n in range(repeats + 1):
        report("measure", n, repeats + 1)
        start = time.perf_counter()
        times = [time.perf_counter() for delta in llm.loop.stream(prompt(), params) if delta.token_ids]
        first.append(times[0] - start)
        decode.append((len(times) - 1) / (times[-1] - times[0]))
        start = time.perf_counter()
        llm.loop.generate([prompt() for _ in range(requests)], params)
        total.append(time.perf_counter() - start)
    report("measure", repeats + 1, repeats + 1)
    alone, wall = statistics.median(decode[1:]), statistics.median(total[1:])
    read = getattr(llm.engine, "bytes_read", None)
    share = alone * read / read_bandwidth() if read else None
    outputs = requests * new_tokens
    return Figures(
        statistics.median(first[1:]),
        alone,
        share,
        (outputs + requests * prompt_tokens) / wall,
        outputs / wall,
    )
