"""transformers' continuous batching, what ``generate_batch`` runs, as a peer."""

from __future__ import annotations

from typing import Any


def make(kind: str, seqs: int, longest: int, **setup: Any) -> GenerateBatch:
    """As ``transformers_peer.make``."""
    from transformers_peer import model_of

    return GenerateBatch(model_of(**setup), longest)


class GenerateBatch:
    """A ``serve.Contender``. ``generate_batch`` starts its manager anew for each call; here it runs on.

    Another is made where the number of requests changes, by which it sizes its pages and graphs.
    """

    def __init__(self, model: Any, longest: int) -> None:
        import transformers

        self.model, self.longest, self.size, self.manager = model, longest, 0, None
        self.about = f"transformers {transformers.__version__} generate_batch"
        self.vocab = int(model.config.get_text_config().vocab_size)

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> list[list[float]]:
        manager = self._manager(len(prompts), len(prompts[0]))
        ids = manager.add_requests(prompts, max_new_tokens=new, record_timestamps=stream)
        times: dict[str, list[float]] = {}
        while len(times) < len(ids):
            output = manager.get_result(timeout=1)
            if output is None and not manager.is_running():
                raise RuntimeError("the manager ended")
            if output is None or not output.is_finished():
                continue
            if output.error or len(output.generated_tokens) != new:
                raise RuntimeError(output.error or f"made {len(output.generated_tokens)} tokens, not {new}")
            times[output.request_id] = list(output.timestamps or [])
        return [times[i] for i in ids]

    def close(self) -> None:
        if self.manager is not None:
            self.manager.stop(block=True, timeout=10)

    def _manager(self, requests: int, prompt: int) -> Any:
        """The manager for so many requests, running."""
        if self.manager is not None and self.size == requests:
            return self.manager
        import torch
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints

        self.close()
        share = None if self.model.device.type == "cuda" else 0.1  # of the machine's memory, which others use
        settings = ContinuousBatchingConfig(max_memory_percent=share)
        new = self.longest - prompt
        hints = WorkloadHints(max_prompt_length=prompt, max_generated_length=new, num_requests=requests)
        self.manager = self.model.init_continuous_batching(
            continuous_batching_config=settings, workload_hints=hints
        )
        self.size = requests
        with torch.no_grad():
            self.manager.warmup()
        self.manager.start()
        return self.manager
