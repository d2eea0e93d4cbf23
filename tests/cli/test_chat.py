"""The chat of `irloom run`: turns, Ctrl-C, the end."""

import io

import pytest

from irloom import SamplingParams
from irloom.cli.run import _chat


class Echo:
    """Says back what it was told, letter by letter; `stop` in a message is Ctrl-C after two of them."""

    def __init__(self):
        self.heard, self.closed = [], 0

    def stream(self, prompt, params):
        self.heard.append([m["content"] for m in prompt])
        try:
            for i, letter in enumerate(prompt[-1]["content"].upper()):
                if i == 2 and "stop" in prompt[-1]["content"]:
                    raise KeyboardInterrupt
                yield letter
        finally:
            self.closed += 1


@pytest.fixture
def chat(monkeypatch, capsys):
    def talk(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        llm = Echo()
        _chat(llm, SamplingParams())
        return llm, capsys.readouterr().out

    return talk


def test_a_chat_remembers_its_turns(chat):
    llm, out = chat("hello", "more")
    assert llm.heard == [["hello"], ["hello", "HELLO", "more"]]
    assert out == "> HELLO\n> MORE\n> \n"


def test_an_interrupted_answer_is_forgotten(chat):
    llm, out = chat("hello", "stop it", "again")
    assert llm.heard[-1] == ["hello", "HELLO", "again"]
    assert llm.closed == 3
    assert "> ST\n> AGAIN\n" in out
