"""transformers' ``generate`` as a contender: eager, or static cache and ``torch.compile``. One by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve import Answers, Clock, contend


class Ticks:
    """A streamer that notes when tokens come; ``generate`` puts the prompt first."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.prompts = clock, 1

    def put(self, value: Any) -> None:
        if self.prompts:
            self.prompts -= 1
        else:
            self.clock.tick()

    def end(self) -> None:
        """Nothing is kept back."""


class Transformers:
    """The weights of the GGUF, decoded, in ``dtype``."""

    def __init__(self, model: str, dtype: str, compiled: bool, threads: int, longest: int) -> None:
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.set_num_threads(threads)
        path = Path(model).resolve()
        self.model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, dtype), local_files_only=True
        ).eval()
        self.about = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        options: dict[str, Any] = {}
        if compiled:
            from transformers import CompileConfig

            settings = CompileConfig(mode="default")
            settings._compile_all_devices = True  # else only accelerators are compiled for
            options = {"cache_implementation": "static", "max_cache_len": longest, "compile_config": settings}
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, **options)

    def facts(self) -> dict[str, Any]:
        weights = {p.data_ptr(): p.numel() * p.element_size() for p in self.model.parameters()}
        return {"weight_bytes": sum(weights.values()), "about": self.about}

    def answer(self, prompts: list[list[int]], new: list[int]) -> Answers:
        clock = Clock()
        rest = Clock(clock.start)
        made = [
            self._one(p, n, clock if i == 0 else rest)
            for i, (p, n) in enumerate(zip(prompts, new, strict=True))
        ]
        return clock.answers(made)

    def _one(self, prompt: list[int], new: int, clock: Clock) -> list[int]:
        import torch

        ids = torch.tensor([prompt])
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, streamer=Ticks(clock)
        )[0, len(prompt) :].tolist()
        assert len(out) == new, f"generate made {len(out)} tokens instead of {new}"
        return out


contend(Transformers)
