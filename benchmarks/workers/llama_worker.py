"""llama.cpp as a contender: its own C interface through llama-cpp-python, requests batched over sequence ids.

Needs llama-cpp-python and numpy, nothing of irloom: the interpreter may be another one. As llama-server does,
every step decodes one token of each running request and fills the rest of the batch with prompts; keys and
values of requests are kept apart or together, whichever warm-up finds quicker.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

from serve import Answers, Clock, contend


@dataclass
class Running:
    """A request: ``done`` of its ``prompt`` is in the cache; ``tokens`` answered of ``new``."""

    seq: int
    prompt: list[int]
    new: int
    done: int = 0
    tokens: list[int] = field(default_factory=list)

    def chunk(self, room: int) -> list[int]:
        """What to compute next, up to ``room`` tokens."""
        if self.tokens:
            return self.tokens[-1:]
        return self.prompt[self.done : self.done + room]


class Llama:
    """One model, a context for each way to keep the cache."""

    batch = 2048

    def __init__(self, model: str, threads: int, longest: int, requests: int) -> None:
        import llama_cpp

        self.c, self.threads, self.requests, self.longest = llama_cpp, threads, requests, longest
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.buffer = llama_cpp.llama_batch_init(self.batch, 0, 1)
        self.contexts = {unified: self._context(unified) for unified in (False, True)}
        self.unified = False

    def _context(self, unified: bool) -> Any:
        p = self.c.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = (
            self.longest * self.requests,
            self.batch,
            512,
            self.requests,
        )
        p.n_threads = p.n_threads_batch = self.threads
        p.kv_unified, p.no_perf = unified, True
        context = self.c.llama_init_from_model(self.model, p)
        if not context:
            raise RuntimeError("llama.cpp makes no context")
        return context

    def facts(self) -> dict[str, Any]:
        system = self.c.llama_print_system_info().decode()
        about = {"llama-cpp-python": self._version(), "system": system, "threads": self.threads}
        sizes = self.c.llama_model_size(self.model), self.c.llama_model_n_params(self.model)
        return {"weight_bytes": sizes[0], "parameters": sizes[1], "about": about}

    def _version(self) -> str:
        return str(getattr(self.c, "__version__", "unknown"))

    def serve_choose(self, prompts: list[list[int]], new: list[int]) -> dict[str, Any]:
        """Run each way of keeping the cache twice on these requests and stay with the quicker."""
        seconds = {}
        for unified in self.contexts:
            self.unified = unified
            self.answer(prompts, new)
            seconds[unified] = self.answer(prompts, new).seconds
        self.unified = min(seconds, key=lambda u: seconds[u])
        return {"cache": "unified" if self.unified else "apart", "seconds": [seconds[False], seconds[True]]}

    def answer(self, prompts: list[list[int]], new: list[int]) -> Answers:
        context = self.contexts[self.unified]
        self.c.llama_memory_clear(self.c.llama_get_memory(context), False)
        clock = Clock()
        every = [Running(i, p, n) for i, (p, n) in enumerate(zip(prompts, new, strict=True))]
        while running := [r for r in every if len(r.tokens) < r.new]:
            outputs = self._fill(running)
            if code := self.c.llama_decode(context, self.buffer):
                raise RuntimeError(f"llama_decode failed with {code}")
            for at, r in outputs:
                r.tokens.append(self._greedy(context, at))
                if r.seq == 0:
                    clock.tick()
        return clock.answers([r.tokens for r in every])

    def _fill(self, running: list[Running]) -> list[tuple[int, Running]]:
        """Put the next step into the batch; where in it tokens are sampled, and for whom."""
        b, n, outputs = self.buffer, 0, []
        for r in sorted(running, key=lambda r: not r.tokens):  # running answers first
            for token in r.chunk(self.batch - n):
                b.token[n], b.pos[n], b.n_seq_id[n], b.seq_id[n][0], b.logits[n] = token, r.done, 1, r.seq, 0
                r.done, n = r.done + 1, n + 1
            if n and r.done >= len(r.prompt) and b.seq_id[n - 1][0] == r.seq:
                b.logits[n - 1] = 1
                outputs.append((n - 1, r))
        b.n_tokens = n
        return outputs

    def _greedy(self, context: Any, at: int) -> int:
        import numpy as np

        logits = np.ctypeslib.as_array(self.c.llama_get_logits_ith(context, at), shape=(self.vocab,))
        return int(logits.argmax())


contend(Llama)
