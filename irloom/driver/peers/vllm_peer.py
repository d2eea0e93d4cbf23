"""vLLM as a peer: its engine stepped in this process's hands, so that the time of each token is seen."""

from __future__ import annotations

import os
import time
from typing import Any

ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # else it may compile for minutes, and greedy answers need none
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set where the user has not set them."""


def make(
    kind: str,
    model: str,
    device: str,
    dtype: str,
    longest: int,
    seqs: int,
    threads: int | None,
    settings: dict[str, Any],
) -> Vllm:
    """Settings are those of ``EngineArgs``, and go before what is chosen here."""
    if device != "cuda":
        raise RuntimeError("runs on a GPU only")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    chosen: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "load_format": "auto",
        "skip_tokenizer_init": True,
        "max_model_len": longest,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": max(8192, seqs),
        "gpu_memory_utilization": 0.9,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    return Vllm({**chosen, **settings})


class Vllm:
    """A ``serve.Contender``."""

    def __init__(self, options: dict[str, Any]) -> None:
        import vllm  # pyright: ignore[reportMissingImports]
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]

        self.engine = LLMEngine.from_engine_args(EngineArgs(**options))
        self.about = f"vLLM {vllm.__version__}"
        self.vocab = int(self.engine.model_config.get_vocab_size())
        self._names = 0

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> list[list[float]]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        params = SamplingParams(
            temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False, output_kind=kind
        )
        times: dict[str, list[float]] = {}
        for prompt in prompts:
            self._names += 1
            times[str(self._names)] = []
            self.engine.add_request(str(self._names), {"prompt_token_ids": prompt}, params)
        made = 0
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            now = time.perf_counter()
            for output in outputs:
                tokens = len(output.outputs[0].token_ids)
                made += tokens
                times[output.request_id].extend([now] * tokens)
        if made != new * len(prompts):
            raise RuntimeError(f"made {made} tokens instead of {new * len(prompts)}")
        return list(times.values()) if stream else [[] for _ in prompts]

    def close(self) -> None:
        self.engine.engine_core.shutdown()
