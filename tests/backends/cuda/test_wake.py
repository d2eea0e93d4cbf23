"""What a first launch waits for is begun once, however often it is asked for."""

from __future__ import annotations

from threading import Event

from irloom.backends.cuda import wake


def test_each_is_begun_once(monkeypatch) -> None:
    """By a build, then by the opening of what it has built, which asks for more."""
    begun, done = list[str](), Event()

    def context() -> None:
        begun.append("context")
        raise OSError("no GPU")  # who needs it says so

    def stage() -> None:
        begun.append("stage")
        done.set()

    monkeypatch.setattr(wake, "_context", context)
    monkeypatch.setattr(wake, "_name_of_triton", lambda: None)
    wake.wake()
    wake.wake(stage)
    wake.wake(stage)
    assert done.wait(10)
    assert sorted(begun) == ["context", "stage"]
