"""A model that answers, embedded in this process: what ``irloom.LLM`` is."""

from __future__ import annotations

import operator
import shutil
import tempfile
import weakref
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from irloom import __version__
from irloom.backends.artifact import EngineReader, read_manifest
from irloom.backends.core import Backend, Limits, Report, backend, quiet, usual_limits
from irloom.ir.errors import EngineMismatch, RequestError
from irloom.passes.pipeline import Pipeline
from irloom.runtime import Loop, Output, SamplingParams
from irloom.runtime.core import Engine

from .core import compile, engine_for
from .pipelines import available

Prompt = str | Mapping[str, Any] | Sequence[int] | Sequence[Mapping[str, str]]


class LLM:
    """A model that answers, embedded in this process.

    ``model`` is a path, a hub id or an engine directory; anything but an engine is compiled first and kept in
    the cache, with the LoRA matrices of the directory ``adapter`` merged into its weights. It may also be an
    ``nn.Module`` with its ``tokenizer``, whose engine lives as long as this object. The rest are run-time
    settings, see ``backends.core.Limits``: ``max_tokens``, ``max_seqs``, ``max_context``, ``memory`` (bytes),
    ``threads``, ``batch_invariant``.
    """

    def __init__(
        self,
        model: Any,
        target: str | None = None,
        pipeline: Pipeline | None = None,
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
        built_for = read_manifest(folder).target
        if target is not None and available(target) != built_for:
            raise EngineMismatch(f"{folder} was built for {built_for}, not for {target}")
        opener = backend(built_for)
        opener.wake()
        self.reader = reader = EngineReader(folder, opener.later)
        reader.require({"irloom": reader.manifest.versions["irloom"]}, {"irloom": __version__})
        self.folder, self.manifest = folder, reader.manifest
        self.tokenizer = _tokenizer(reader)  # while what the opener begins waits for a device, not for Python
        self.engine = _opened(opener, reader, replace(usual_limits(opener), **limits))
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


def _opened(opener: Backend, reader: EngineReader, limits: Limits) -> Engine:
    """The engine, when all its bytes are checked. Where one was changed, that is the error, but for those
    that say what does not fit: they look at nothing that is unchecked, and need not wait for the rest.
    """
    try:
        engine = opener.open(reader, limits)
    except (EngineMismatch, RequestError):
        raise
    except Exception:
        reader.checked()
        raise
    reader.checked()
    return engine


def _tokenizer(reader: EngineReader) -> Any:
    if "tokenizer/tokenizer.json" not in reader.manifest.parts:
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(reader.file("tokenizer/tokenizer.json")))
