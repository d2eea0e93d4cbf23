"""irloom as a peer: another version of it, in ``--peer-python``, or an engine that is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make(
    kind: str,
    model: str,
    device: str,
    dtype: str,
    longest: int,
    seqs: int,
    threads: int | None,
    settings: dict[str, Any],
) -> Irloom:
    """Settings are those of ``LLM``, such as ``target``, and go before what is chosen here."""
    from irloom import LLM
    from irloom.backends.artifact import is_engine

    target = None if is_engine(Path(model)) else {"cuda": "cuda"}.get(device, "cpu")
    chosen = {"target": target, "max_context": longest, "max_seqs": seqs, "threads": threads}
    return Irloom(LLM(model, **{**chosen, **settings}))


class Irloom:
    """A ``serve.Contender``."""

    def __init__(self, llm: Any) -> None:
        from irloom.driver import Own

        self.own = Own(llm)
        self.about, self.vocab = self.own.about, self.own.vocab

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> list[list[float]]:
        return self.own.times(prompts, new, stream)

    def close(self) -> None:
        """Nothing outlives the process."""
