"""A peer by name, and the process that it answers from: one JSON object a line in, one a line out.

``serve.py`` is the other end, started as a script in an interpreter that need not have irloom: the modules
beside it use nothing but the peer's own packages. To add a peer, write ``name_peer.py`` with a ``make`` that
gives what ``serve.Contender`` says, and name it in ``PEERS``.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from irloom.ir.errors import IrloomError, RequestError

from ..load import Answer

HERE = Path(__file__).resolve().parent
PEERS: dict[str, str] = {
    "vllm": "vllm_peer",
    "transformers": "transformers_peer",
    "compile": "transformers_peer",
    "batch": "batch_peer",
    "irloom": "irloom_peer",
}
"""The module of each: vLLM; transformers' eager ``generate``; the same with a static cache and
``torch.compile``; its continuous batching, ``generate_batch``; another irloom."""
GRACE = 20.0
"""Seconds that a peer has to give its memory back before it is killed."""


class PeerError(IrloomError):
    """A peer is absent, failed, or took too long; the message is the reason to print."""


@dataclass(frozen=True)
class Peer:
    """A name of ``PEERS``, with settings of its own: ``vllm(quantization=fp8, kv_cache_dtype=fp8)``."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}({given})" if given else self.name


def peer(text: str) -> Peer:
    """The peer that ``text`` names; ``RequestError`` if there is none.

    >>> peer("vllm(quantization=fp8, max_num_seqs=512)").settings["max_num_seqs"]
    512
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if found is None or found[1] not in PEERS:
        near = get_close_matches(text, PEERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PEERS)}"
        raise RequestError(f"no peer {text!r}", hint=hint)
    settings: dict[str, Any] = {}
    for item in filter(None, map(str.strip, (found[2] or "").split(","))):
        key, equals, value = map(str.strip, item.partition("="))
        if not equals:
            raise RequestError(f"peer {found[1]}: {item!r} sets nothing", hint="write name=value")
        settings[key] = _value(value)
    return Peer(found[1], settings)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


@dataclass(frozen=True)
class Setup:
    """What all peers are told: the weights, where and in what to compute, and the most that will be asked.

    ``dtype`` is torch's name of the element, ``longest`` tokens of a sequence, ``seqs`` sequences at once,
    ``threads`` those of the CPU (None: as the peer sees fit).
    """

    model: str
    device: str
    dtype: str
    longest: int
    seqs: int
    threads: int | None = None


class PeerProcess:
    """A peer that has its model loaded: a ``load.Contender``. ``about`` says what it is, with its version.

    ``python`` is an interpreter that has the peer; ``limit`` are the seconds that loading, and each answer,
    may take: nothing but its end stops a compiler that runs on.
    """

    def __init__(self, peer: Peer, setup: Setup, python: str | None = None, limit: float = 1800.0) -> None:
        self.peer, self.limit = peer, limit
        self._log = Path(tempfile.mkstemp(prefix="irloom-peer-")[1])
        pipe = subprocess.PIPE
        command = [python or sys.executable, str(HERE / "serve.py"), PEERS[peer.name]]
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True
                )
        except OSError as error:
            self._log.unlink()
            raise PeerError(f"{command[0]} cannot be started: {error.strerror}") from error
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            made = self._ask("load", kind=peer.name, settings=dict(peer.settings), **asdict(setup))
        except BaseException:
            self.close()
            raise
        self.about = " ".join(
            [made["about"], *([str(peer).removeprefix(peer.name)] if peer.settings else [])]
        )
        self.vocab = int(made["vocab"])

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> Answer:
        """See ``load.Contender``; ``PeerError`` where there is no answer, and then there never will be."""
        return Answer(**self._ask("answer", prompts=prompts, new=new, stream=stream))

    def close(self) -> None:
        """End the process and all that it started; its memory is free after that."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(GRACE)
        self._log.unlink(missing_ok=True)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, do: str, **what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=self.limit)
        except queue.Empty:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise PeerError(f"to {do} took more than {self.limit:.0f} s") from None
        except OSError:  # it closed its end
            line = ""
        if not line:
            raise PeerError(f"ended with status {self._process.wait()}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(str(answer["error"]).strip().partition("\n")[0][:300])
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        said = self._log.read_text(errors="replace").strip().splitlines()
        return said[-1][:300] if said else "it said nothing"
