"""The loop: requests in, steps of the engine, text out.

A request's life: ``add_request`` checks and queues it, the ``Scheduler`` gives it tokens of each step,
``build`` packs them, the engine stores and samples, and its ``Answer`` takes the token and decides whether it
ends.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from irloom.ir.errors import RequestError
from irloom.runtime.answer import Answer, Delta, Output
from irloom.runtime.batch import build
from irloom.runtime.core import Engine
from irloom.runtime.detokenizer import Vocabulary
from irloom.runtime.pages import Pages, Prefix
from irloom.runtime.request import FinishReason, Phase, Request, SamplingParams
from irloom.runtime.scheduler import Scheduler

Prompt = str | Sequence[int]


@dataclass
class Stats:
    """Counters since the loop began: ``computed`` tokens went through the engine, ``cached`` were hits."""

    steps: int = 0
    computed: int = 0
    cached: int = 0
    generated: int = 0


class Loop:
    """Serves requests on one engine, from one thread.

    ``tokenizer`` is a ``tokenizers.Tokenizer`` or a fast transformers tokenizer; without one, prompts are
    token ids and text is empty. ``eos`` are the model's end tokens.
    """

    def __init__(self, engine: Engine, tokenizer: object | None = None, eos: Collection[int] = ()) -> None:
        self.engine, self.eos = engine, frozenset(eos)
        self.vocabulary = None if tokenizer is None else Vocabulary(tokenizer)
        slots = min(engine.max_seqs, engine.max_tokens)  # so that every running request can have a token
        self.pages = Pages(engine.pools, slots, engine.max_context)
        self.scheduler = Scheduler(self.pages, engine.max_tokens)
        self.stats = Stats()
        self._live: dict[str, Answer] = {}
        self._ready: deque[Delta] = deque()
        self._names = 0

    # using it

    def generate(
        self, prompts: Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Output]:
        """Serve all prompts together and wait for them; outputs in the order of the prompts."""
        prompts = list(prompts)
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if len(each) != len(prompts):
            raise RequestError(f"generate: {len(prompts)} prompts but {len(each)} sampling parameters")
        requests = [self._request(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        outputs = {d.id: d.output for d in self._serve(requests) if d.output is not None}
        return [outputs[request.id] for request in requests]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> Generator[Delta]:
        """Serve one prompt and yield its text as it comes; leaving the iteration cancels the request.

        Several streams may be read by turns: a step taken for one serves all.
        """
        return self._serve([self._request(prompt, params or SamplingParams(), priority=priority)])

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request for ``step``. Lower ``priority`` runs first; prefixes are shared within a salt."""
        request = self._request(prompt, params or SamplingParams(), id, priority, cache_salt)
        self._enter(request, self._ready)
        return request.id

    def step(self) -> list[Delta]:
        """One step of the engine, and what it added to the requests of ``add_request``."""
        self._advance()
        deltas = list(self._ready)
        self._ready.clear()
        return deltas

    def cancel(self, id: str) -> Output | None:
        """End a request now and free its pages: its output so far, or None when it is not there any more."""
        answer = self._live.get(id)
        return self._finish(answer, FinishReason.CANCELLED) if answer else None

    @property
    def unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._live)

    def check(self) -> None:
        """Every invariant of scheduler and pages."""
        self.scheduler.check()
        known = [*self.scheduler.running, *(r for _, r in self.scheduler.waiting if r.finish is None)]
        assert {r.id for r in known} == set(self._live), "a request is lost"
        assert len(known) == len(self._live), "a request is queued twice"

    # inside

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Request:
        """Check everything a user can get wrong, before anything is queued."""
        if isinstance(prompt, str):
            if self.vocabulary is None:
                raise RequestError("prompt: text needs a tokenizer", hint="give token ids")
            prompt = self.vocabulary.encode(prompt)
        capacity = self.pages.capacity
        if not len(prompt):
            raise RequestError(f"prompt: 0 tokens, but a request needs 1 to {capacity}")
        if len(prompt) > capacity:
            raise RequestError(
                f"prompt: {len(prompt)} tokens, but the engine's pages hold {capacity}",
                hint="shorten the prompt, or open the engine with more pages",
            )
        self._check_tokens("prompt", prompt)
        self._check_tokens("logit_bias", params.logit_bias)
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        if params.stop and self.vocabulary is None:
            raise RequestError("stop: strings need a tokenizer", hint="use stop_token_ids")
        self._names += 1
        room = capacity + 1 - len(prompt)  # the last token generated is never stored
        tokens = np.empty(len(prompt) + min(room, params.max_tokens or room), np.int32)
        tokens[: len(prompt)] = prompt
        return Request(
            id or f"request-{self._names}",
            tokens,
            len(prompt),
            params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=frozenset(params.stop_token_ids).union(() if params.ignore_eos else self.eos),
            prefix=Prefix(tokens, self.pages.unit, cache_salt),
            priority=priority,
            known=len(prompt),
            seen=np.unique(tokens[: len(prompt)]) if params.penalized else None,
        )

    def _check_tokens(self, name: str, ids: Iterable[int]) -> None:
        vocab = self.engine.vocab
        if (bad := next((i for i in ids if not 0 <= i < vocab), None)) is not None:
            raise RequestError(f"{name}: token {bad} is not in the vocabulary of {vocab}")

    def _enter(self, request: Request, inbox: deque[Delta]) -> None:
        if request.id in self._live:
            raise RequestError(f"id: {request.id!r} is being served already")
        self._live[request.id] = Answer(request, self.vocabulary, inbox)
        self.scheduler.add(request)

    def _serve(self, requests: list[Request]) -> Generator[Delta]:
        """Queue the requests and yield their deltas; whatever ends the iteration early cancels them."""
        inbox: deque[Delta] = deque()
        entered: list[Request] = []
        try:
            for request in requests:
                self._enter(request, inbox)
                entered.append(request)
            left = len(requests)
            while left:
                if not inbox:
                    self._advance()
                while inbox:
                    delta = inbox.popleft()
                    left -= delta.output is not None
                    yield delta
        finally:
            for request in entered:
                self.cancel(request.id)

    def _advance(self) -> None:
        """Schedule, run, take. Whatever goes wrong in here ends all requests, and no page stays in use."""
        try:
            chunks = self.scheduler.schedule()
            if not chunks:
                return
            sampled = self.engine.step(build(chunks, self.pages))
            self.scheduler.complete(chunks)
            self.stats.steps += 1
            self.stats.computed += sum(chunk.count for chunk in chunks)
            for chunk, one in zip(chunks, sampled, strict=True):
                if one is not None:
                    self.stats.generated += 1
                    answer = self._live[chunk.request.id]
                    reason = answer.take(one)
                    if reason is None:
                        answer.tell()
                    else:
                        self._finish(answer, reason)
        except BaseException as error:
            self._abort(FinishReason.ERROR if isinstance(error, Exception) else FinishReason.CANCELLED)
            raise

    def _finish(self, answer: Answer, reason: FinishReason) -> Output:
        self.scheduler.finish(answer.request, reason)
        del self._live[answer.request.id]
        self.stats.cached += answer.request.cached
        return answer.close(reason)

    def _abort(self, reason: FinishReason) -> None:
        """End all requests after a step that broke off: its pages and queues are not to be trusted."""
        self.pages.reset()
        self.scheduler.clear()
        for answer in list(self._live.values()):
            answer.request.phase, answer.request.table = Phase.FINISHED, None
            self._finish(answer, reason)
