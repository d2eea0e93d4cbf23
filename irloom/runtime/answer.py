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


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a request; ``output`` comes with the last."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    output: Output | None = None


class Answer:
    """The answer to one request while it is made; its deltas go to ``inbox``.

    Without a ``vocabulary`` the text is empty. An answer that nobody reads as it grows is ``quiet``: it has
    one delta, at the end, and its text is made then, unless a stop string is looked for.
    """

    def __init__(
        self, request: Request, vocabulary: Vocabulary | None, inbox: deque[Delta], quiet: bool = False
    ) -> None:
        self.request, self.inbox, self.quiet = request, inbox, quiet
        params = request.params
        prompt: list[int] = request.tokens[: request.prompt_length].tolist()
        self.detokenizer = vocabulary and Detokenizer(vocabulary, prompt, params.skip_special_tokens)
        self.stops = StopStrings(params.stop, params.include_stop)
        self.pieces: list[str] = []
        self.sampled: list[Sampled] = []
        self.stop_reason: str | int | None = None
        self._read = self._told = request.known  # tokens whose text is made; that a delta has reported
        self._sent = 0  # pieces that a delta has reported
        request.followed = not quiet or bool(params.stop) or params.penalized or params.logprobs is not None

    def take(self, token: int, reported: Sampled | None = None) -> FinishReason | None:
        """The request has a new token, the last of its tokens; the reason if it ends with it."""
        request, params = self.request, self.request.params
        if reported is not None:
            self.sampled.append(reported)
        if request.seen is not None:
            request.counts[token] = request.counts.get(token, 0) + 1
        stop = token in request.stop_ids
        if self.detokenizer:
            self._say(request.known - (stop and not params.include_stop))
            self._read = request.known
            if self.stops.found is not None:
                self.stop_reason = self.stops.found
                return FinishReason.STOP
        if stop:
            self.stop_reason = token if token in params.stop_token_ids else None
            return FinishReason.STOP
        return FinishReason.LENGTH if request.known == request.end else None

    def tell(self, token: int) -> None:
        """Report the last token, and the text it added."""
        if not self.quiet:
            self._told = self.request.known
            text = self._rest() if self.detokenizer else ""
            self.inbox.append(Delta(self.request.id, text, (token,)))

    def _say(self, known: int) -> None:
        """Make the text of the first ``known`` tokens."""
        assert self.detokenizer is not None
        request = self.request
        piece = "".join(self.detokenizer.push(t) for t in request.tokens[self._read : known].tolist())
        armed = request.generated >= request.params.min_tokens
        self.pieces.append(self.stops.push(piece, armed))
        self._read = known

    def _rest(self) -> str:
        """The text that no delta has reported."""
        start, self._sent = self._sent, len(self.pieces)
        return "".join(self.pieces[start:])

    def close(self, reason: FinishReason) -> Output:
        """Report the last token, the text kept back, and the whole."""
        request, length = self.request, self.request.prompt_length
        tokens: list[int] = request.tokens[: request.known].tolist()
        if self.detokenizer and self.stops.found is None:
            if self._read < request.known:
                self._say(request.known)
            self.pieces.append(self.stops.push(self.detokenizer.flush(), armed=False) + self.stops.flush())
        text = self._rest()
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
