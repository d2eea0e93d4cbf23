"""What comes back of a request: its text as it grows, why it ended, and all of it at the end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from irloom.runtime.core import Sampled
from irloom.runtime.detokenizer import Detokenizer, StopStrings, Vocabulary
from irloom.runtime.request import FinishReason, Request


@dataclass(frozen=True)
class Output:
    """A finished request. ``stop_reason``: the stop string or stop token id that ended it, None otherwise.

    ``logprobs`` has one entry per generated token, where they were asked for. ``cached_tokens`` of the prompt
    came from the prefix cache.
    """

    id: str
    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: list[Sampled] | None
    cached_tokens: int


@dataclass(frozen=True)
class Delta:
    """What one step added to a request; ``output`` comes with the last."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    output: Output | None = None


class Answer:
    """The answer to one request while it is made; its deltas go to ``inbox``.

    Without a ``vocabulary`` the text is empty.
    """

    def __init__(self, request: Request, vocabulary: Vocabulary | None, inbox: deque[Delta]) -> None:
        self.request, self.inbox = request, inbox
        params = request.params
        prompt: list[int] = request.tokens[: request.prompt_length].tolist()
        self.detokenizer = vocabulary and Detokenizer(vocabulary, prompt, params.skip_special_tokens)
        self.stops = StopStrings(params.stop, params.include_stop)
        self.pieces: list[str] = []
        self.sampled: list[Sampled] = []
        self.stop_reason: str | int | None = None
        self._told = request.known  # tokens that a delta has reported

    def take(self, sampled: Sampled) -> FinishReason | None:
        """Add a sampled token; the reason if the request ends with it."""
        request, params, token = self.request, self.request.params, sampled.token
        request.append(token)
        if params.logprobs is not None:
            self.sampled.append(sampled)
        stop = token in request.stop_ids
        shown = not stop or params.include_stop
        piece = self.detokenizer.push(token) if self.detokenizer and shown else ""
        self.pieces.append(self.stops.push(piece, armed=request.generated >= params.min_tokens))
        if self.stops.found is not None:
            self.stop_reason = self.stops.found
            return FinishReason.STOP
        if stop:
            self.stop_reason = token if token in params.stop_token_ids else None
            return FinishReason.STOP
        return FinishReason.LENGTH if request.known == len(request.tokens) else None

    def tell(self) -> None:
        """Report what the last token added."""
        request = self.request
        self.inbox.append(
            Delta(request.id, self.pieces[-1], tuple(request.tokens[self._told : request.known].tolist()))
        )
        self._told = request.known

    def close(self, reason: FinishReason) -> Output:
        """Report the last token, the text kept back, and the whole."""
        request, length = self.request, self.request.prompt_length
        tokens: list[int] = request.tokens[: request.known].tolist()
        text = self.pieces[-1] if self.pieces and self._told < request.known else ""
        if self.detokenizer and self.stops.found is None:
            rest = self.stops.push(self.detokenizer.flush(), armed=False) + self.stops.flush()
            self.pieces.append(rest)
            text += rest
        output = Output(
            request.id,
            prompt_token_ids=tokens[:length],
            text="".join(self.pieces),
            token_ids=tokens[length:],
            finish_reason=reason,
            stop_reason=self.stop_reason,
            logprobs=None if request.params.logprobs is None else self.sampled,
            cached_tokens=request.cached,
        )
        self.inbox.append(Delta(request.id, text, tuple(tokens[self._told :]), output))
        return output
