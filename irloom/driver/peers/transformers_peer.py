"""transformers' ``generate`` as a peer: eager, or with a static cache and ``torch.compile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def make(kind: str, seqs: int, longest: int, **setup: Any) -> Generate:
    """``kind`` is ``transformers`` or ``compile``; a setting ``mode`` is that of ``torch.compile``."""
    return Generate(model_of(**setup), compiled_options(kind, longest, **setup), seqs)


def model_of(model: str, device: str, dtype: str, settings: dict[str, Any], threads: int | None) -> Any:
    """The model on its device, without end tokens; settings but ``mode`` go to ``from_pretrained``."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    if threads is not None:
        torch.set_num_threads(threads)
    path = Path(model)
    source: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    options = {key: value for key, value in settings.items() if key not in ("mode", "dtype")}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path.parent if source else path,
        dtype=getattr(torch, settings.get("dtype", dtype)),
        local_files_only=True,
        **source,
        **options,
    )
    loaded = loaded.to(device).eval()
    loaded.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return loaded


def compiled_options(kind: str, longest: int, device: str, settings: dict[str, Any], **_: Any) -> Any:
    """What the generation config gets beside: nothing for the eager peer."""
    if kind != "compile":
        return {}
    from transformers import CompileConfig

    compiled = CompileConfig(mode=settings.get("mode", "max-autotune" if device == "cuda" else "default"))
    setattr(compiled, "_compile_all_devices", True)  # noqa: B010 (typed as None): else only GPUs are compiled for
    return {"cache_implementation": "static", "max_cache_len": longest, "compile_config": compiled}


class Generate:
    """A ``serve.Contender``: requests in batches of at most ``seqs``, one batch after the other."""

    def __init__(self, model: Any, options: dict[str, Any], seqs: int) -> None:
        import transformers

        self.model, self.seqs = model, seqs
        self.about = f"transformers {transformers.__version__} {'compiled' if options else 'eager'}"
        self.vocab = int(model.config.get_text_config().vocab_size)
        for name, value in options.items():
            setattr(model.generation_config, name, value)

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> list[list[float]]:
        out: list[list[float]] = []
        for at in range(0, len(prompts), self.seqs):
            some = prompts[at : at + self.seqs]
            times = self._batch(some, new, stream)
            out += [times] * len(some)
        return out

    def close(self) -> None:
        """Nothing outlives the process."""

    def _batch(self, prompts: list[list[int]], new: int, stream: bool) -> list[float]:
        import torch

        ids, ticks = torch.tensor(prompts, device=self.model.device), Ticks()
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                streamer=ticks if stream else None,
            )
        made[0, -1].item()  # waits for the device
        if made.shape[1] - ids.shape[1] != new:
            raise RuntimeError(f"generate made {made.shape[1] - ids.shape[1]} tokens instead of {new}")
        return ticks.times


class Ticks:
    """A streamer that notes when tokens come; ``generate`` puts the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._started = False

    def put(self, value: Any) -> None:
        if self._started:
            self.times.append(time.perf_counter())
        self._started = True

    def end(self) -> None:
        """Nothing is kept back."""
