"""Tokens to text as they come: never half a character, and the pieces add up to the whole.

``tokenizers.decoders.DecodeStream`` is close, but it keeps back a whole text for one unfinished character at
its end, and a byte-fallback decoder can make it fail: there the characters of a run of byte tokens are known
only when the run ends, because one bad byte spoils all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from irloom.ir.errors import IrloomError

UNFINISHED = "\ufffd"
"""What decoders put for bytes that are not (yet) a character."""
CONTEXT = 8
"""Tokens of the prompt to decode with the first new one: enough for any unfinished character."""


class Tokenizer(Protocol):
    """What the runtime needs of a ``tokenizers.Tokenizer``."""

    @property
    def decoder(self) -> object: ...
    def encode(self, sequence: str) -> Any: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def id_to_token(self, id: int) -> str | None: ...
    def token_to_id(self, token: str) -> int | None: ...
    def get_added_tokens_decoder(self) -> dict[int, Any]: ...


class Vocabulary:
    """A tokenizer and what detokenizing asks of it, looked up once.

    Takes a ``tokenizers.Tokenizer`` or a transformers tokenizer, whose ``backend_tokenizer`` is used.
    """

    def __init__(self, tokenizer: object) -> None:
        backend: object = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(backend, "get_added_tokens_decoder"):
            raise IrloomError(
                f"tokenizer: {type(tokenizer).__name__} has no backend of the tokenizers library",
                hint="use the fast version of this tokenizer",
            )
        self.tokenizer = cast(Tokenizer, backend)
        self.special = frozenset(i for i, t in self.tokenizer.get_added_tokens_decoder().items() if t.special)
        self.bytes = frozenset[int]()
        if "ByteFallback" in repr(self.tokenizer.decoder):
            found = (self.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
            self.bytes = frozenset(i for i in found if i is not None)

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the tokenizer adds."""
        return list(self.tokenizer.encode(text).ids)

    def shown(self, token: int, skip_special: bool) -> bool:
        """Whether the token has any part in the text; an id outside the vocabulary has none."""
        if skip_special and token in self.special:
            return False
        return token >= 0 and self.tokenizer.id_to_token(token) is not None


class Detokenizer:
    """The text of one request, piece by piece.

    The pieces up to ``flush`` add up to what decoding prompt and output together adds to the finished
    characters of the prompt; a character that the prompt left unfinished belongs to the output. The tokens
    kept are those since the text was last complete, and those before them that made it so: decoders
    treat a first token specially.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], skip_special: bool = True) -> None:
        self.vocabulary, self.skip_special = vocabulary, skip_special
        self.window = self._tail(prompt)
        self.fresh = len(self.window)  # tokens from here on came after the text was last complete
        open_run = len(self.window)
        while open_run and self.window[open_run - 1] in vocabulary.bytes:
            open_run -= 1
        self.prefix = self._decode(self.window[:open_run])  # what of the window's text has been emitted
        if not vocabulary.bytes:
            self.prefix = self.prefix.removesuffix(UNFINISHED)

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if not self.vocabulary.shown(token, self.skip_special):
            return ""
        self.window.append(token)
        if token in self.vocabulary.bytes:
            return ""
        text = self._decode(self.window)
        unfinished = not self.vocabulary.bytes and text.endswith(UNFINISHED)
        sure = text[:-1] if unfinished else text
        piece = sure[len(self.prefix) :]
        if piece and not unfinished:
            self._restart(self.fresh)
        elif unfinished and len(self.window) > 4 * CONTEXT:  # nothing but broken characters: keep it short
            self._restart(len(self.window) - CONTEXT)
            self.prefix = self.prefix.removesuffix(UNFINISHED)
        else:
            self.prefix = sure
        return piece

    def flush(self) -> str:
        """The rest: characters that no token will finish any more."""
        piece = self._decode(self.window)[len(self.prefix) :]
        self.prefix += piece
        return piece

    def _restart(self, start: int) -> None:
        self.window = self.window[start:]
        self.fresh = len(self.window)
        self.prefix = self._decode(self.window)

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt that have text, not beginning inside a run of byte tokens."""
        tail: list[int] = []
        for token in reversed(prompt):
            if self.vocabulary.shown(token, self.skip_special):
                if len(tail) >= CONTEXT and tail[-1] not in self.vocabulary.bytes:
                    break
                tail.append(token)
        return tail[::-1]

    def _decode(self, tokens: list[int]) -> str:
        return self.vocabulary.tokenizer.decode(tokens, skip_special_tokens=self.skip_special)


class StopStrings:
    """Cuts text at the first stop string to be completed, and keeps back what may become one.

    ``found`` is that string. The text ends before it, or behind it with ``include``.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self.stops, self.include = stops, include
        self.held = ""
        self.found: str | None = None

    def push(self, text: str, armed: bool = True) -> str:
        """The part of the text so far that is not emitted yet and no part of a stop string.

        A string that is complete before the text is ``armed`` does not stop it, then or later.
        """
        if not self.stops:
            return text
        before, text = len(self.held), self.held + text
        if armed and (match := self._match(text, before)):
            end, self.found = match
            self.held = ""
            return text[: end if self.include else end - len(self.found)]
        keep = max(self._overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was kept back: no stop string came of it."""
        text, self.held = self.held, ""
        return text

    def _match(self, text: str, before: int) -> tuple[int, str] | None:
        """End and string of the match that ends first (the longest of those), past what was searched."""
        found = [(text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self.stops]
        ends = [(start + len(stop), -len(stop), stop) for start, stop in found if start >= 0]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _overlap(self, text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that begins ``stop``."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
