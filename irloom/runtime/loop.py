"""The loop: requests in, steps of the engine, text out.

A request's life: ``add_request`` checks and queues it, the ``Scheduler`` gives it tokens of each step,
``build`` packs them, the engine stores and samples, and its ``Answer`` takes the token and decides whether it
ends. An ``Overlapped`` engine gets each step before the tokens of the one in front are taken.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from irloom.ir.errors import OutOfMemory, RequestError
from irloom.runtime.answer import Answer, Delta, Output
from irloom.runtime.batch import build
from irloom.runtime.core import BROKEN, Chosen, Engine, Overlapped, Sampled
from irloom.runtime.detokenizer import Vocabulary
from irloom.runtime.flight import Flight, submitter
from irloom.runtime.pages import Pages, Prefix
from irloom.runtime.request import FinishReason, Phase, Request, SamplingParams
from irloom.runtime.scheduler import Chunks, Scheduler

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
        self._submit, self._overlaps = submitter(engine), isinstance(engine, Overlapped)
        self._flight: Flight | None = None
        self._failure: Exception | None = None
        self._ends = np.zeros(engine.vocab, np.bool_)  # tokens that have ended some request
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
        outputs = {d.id: d.output for d in self._serve(requests, quiet=True) if d.output is not None}
        return [outputs[request.id] for request in requests]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> Generator[Delta]:
        """Serve one prompt and yield its text as it comes; leaving the iteration cancels the request.

        Several streams may be read by turns: a step taken for one serves all.
        """
        return self._serve(
            [self._request(prompt, params or SamplingParams(), priority=priority)], quiet=False
        )

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
        tokens = np.array(prompt, np.int32)
        return Request(
            id or f"request-{self._names}",
            tokens,
            len(prompt),
            len(prompt) + min(room, params.max_tokens or room),
            params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=frozenset(params.stop_token_ids).union(() if params.ignore_eos else self.eos),
            prefix=Prefix(tokens, self.pages.unit, cache_salt),
            priority=priority,
            known=len(prompt),
            seen=np.unique(tokens) if params.penalized else None,
        )

    def _check_tokens(self, name: str, ids: Collection[int]) -> None:
        vocab = self.engine.vocab
        if len(ids) and not 0 <= min(ids) <= max(ids) < vocab:
            bad = next(i for i in ids if not 0 <= i < vocab)
            raise RequestError(f"{name}: token {bad} is not in the vocabulary of {vocab}")

    def _enter(self, request: Request, inbox: deque[Delta], quiet: bool = False) -> None:
        if request.id in self._live:
            raise RequestError(f"id: {request.id!r} is being served already")
        self._live[request.id] = Answer(request, self.vocabulary, inbox, quiet)
        self._ends[[i for i in request.stop_ids if i < self.engine.vocab]] = True
        self.scheduler.add(request)

    def _serve(self, requests: list[Request], quiet: bool) -> Generator[Delta]:
        """Queue the requests and yield their deltas; whatever ends the iteration early cancels them."""
        inbox: deque[Delta] = deque()
        entered: list[Request] = []
        try:
            for request in requests:
                self._enter(request, inbox, quiet)
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
        """Submit a step, and take the one before it.

        What goes wrong in a step of the engine ends the requests of that step; anything else that goes wrong
        in here ends all requests. No page stays in use by either. A step that is too large for the engine's
        memory is tried again in smaller ones.
        """
        try:
            if self._flight is not None and self._flight.waited:
                self._land()
            self._depart()
        except BaseException as error:
            self._abort(FinishReason.ERROR if isinstance(error, Exception) else FinishReason.CANCELLED)
            raise
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure

    def _depart(self) -> None:
        """Schedule and submit a step; take the one before it while it runs."""
        chunks, sequences = self.scheduler.schedule(), self.scheduler.sequences
        try:
            pending = self._submit(build(chunks, self.pages, sequences)) if len(chunks) else None
        except Exception as error:
            self._land()
            if not (isinstance(error, OutOfMemory) and self.scheduler.shed(chunks)):
                self._fail(chunks.requests, error)
            return
        self._land()
        if pending is None:
            return
        self.scheduler.complete(chunks)
        self._flight = Flight(chunks, pending, bool(sequences.penalized[chunks.slots].any()))
        self.stats.steps += 1
        self.stats.computed += int(chunks.counts.sum())
        if not self._overlaps:
            self._land()

    def _land(self) -> None:
        """Take the step that was submitted, if there is one.

        If it failed, so did those that share what it stored; they joined after it was completed.
        """
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            chosen = flight.pending.take()
        except Exception as error:
            shared = [r for r in self.scheduler.running if r.table and r.table.stored == r.table.hit > 0]
            self.pages.withdraw()
            self._fail([*flight.chunks.requests, *shared], error)
        else:
            self._read(flight.chunks, chosen)

    def _read(self, chunks: Chunks, chosen: Chosen) -> None:
        """Give the tokens of a step to its requests; most are looked at only if they may end one."""
        sequences, rows = self.scheduler.sequences, np.flatnonzero(chunks.samples)
        slots, tokens = chunks.slots[rows], chosen.tokens[rows]
        runs = sequences.serial[slots] == chunks.serials[rows]
        fine = runs & (tokens != BROKEN)
        sequences.append(slots[fine], tokens[fine])
        self.stats.generated += int(np.count_nonzero(fine))
        known = sequences.known[slots]
        full = known == sequences.end[slots]
        look = np.flatnonzero(~fine | full | sequences.followed[slots] | self._ends[tokens])
        each: list[tuple[int, int, int]] = np.stack([rows, tokens, known], 1)[look].tolist()
        for row, token, count in each:
            if (answer := self._answer(chunks.requests[row])) is not None:
                self._give(answer, token, count, chosen.reported.get(row))

    def _give(self, answer: Answer, token: int, known: int, reported: Sampled | None) -> None:
        """A request has a new token, which makes ``known`` tokens if it still runs."""
        request = answer.request
        if token == BROKEN:
            if request.table is not None:
                self.pages.withdraw(request.table)
            self._finish(answer, FinishReason.ERROR)
            return
        if request.awaiting:
            request.receive(token)
            self.stats.generated += 1
        else:
            request.known = known
        reason = answer.take(token, reported)
        if reason is None:
            answer.tell(token)
        else:
            self._finish(answer, reason)

    def _fail(self, requests: Iterable[Request], error: Exception) -> None:
        """End the requests of a step that failed; ``_advance`` raises the error."""
        self._failure = error
        for request in requests:
            if (answer := self._answer(request)) is not None:
                self._finish(answer, FinishReason.ERROR)

    def _answer(self, request: Request) -> Answer | None:
        """What is being made of a request; None when it has ended."""
        answer = self._live.get(request.id)
        return answer if answer is not None and answer.request is request else None

    def _finish(self, answer: Answer, reason: FinishReason) -> Output:
        self.scheduler.finish(answer.request, reason)
        del self._live[answer.request.id]
        self.stats.cached += answer.request.cached
        return answer.close(reason)

    def _abort(self, reason: FinishReason) -> None:
        """End all requests after a step that broke off: its pages and queues are not to be trusted."""
        self._flight = self._failure = None
        self.pages.reset()
        self.scheduler.clear()
        for answer in list(self._live.values()):
            answer.request.phase, answer.request.table = Phase.FINISHED, None
            self._finish(answer, reason)
