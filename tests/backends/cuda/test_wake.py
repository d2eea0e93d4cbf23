"""What a first launch waits for is begun once, however often it is asked for."""

from __future__ import annotations

import subprocess
import sys
from threading import Event
from types import SimpleNamespace
from typing import Any

from irloom.backends.cuda import wake


def test_each_is_begun_once_and_waited_for(monkeypatch) -> None:
    """By a build, then by the opening of what it has built, which asks for more; what needs the GPU comes
    behind the context, though there was none to be had.
    """
    done, begin = list[str](), Event()

    def context() -> None:
        assert begin.wait(10)
        done.append("context")
        raise OSError("no GPU")  # who needs it says so

    def stage() -> None:
        done.append("stage")

    monkeypatch.setattr(wake, "_BEGUN", {})
    monkeypatch.setattr(wake, "CDLL", lambda name: None)
    monkeypatch.setattr(wake, "_context", context)
    monkeypatch.setattr(wake, "_driver", lambda: done.append("driver"))
    monkeypatch.setattr(wake, "_compiler", lambda: done.append("compiler"))
    wake.wake()
    wake.wake(stage)
    wake.wake(stage)
    begin.set()
    wake.awake()
    assert sorted(done) == ["compiler", "context", "driver", "stage"]
    assert done.index("context") < min(done.index("driver"), done.index("stage"))


def test_nothing_is_begun_where_there_is_no_driver(monkeypatch) -> None:
    """A machine that only builds hashes no compiler of 400 MB."""
    monkeypatch.setattr(wake, "_BEGUN", {})
    monkeypatch.setattr(wake, "DRIVER", "libno-such-driver.so.1")
    wake.wake(lambda: None)
    assert not wake._BEGUN


def test_the_driver_is_asked_for_what_torch_will_use() -> None:
    """Not where it finds no GPU: torch says so to whoever needs one."""
    for begun, asked in [(0, ["cuInit", "cuDevicePrimaryCtxRetain"]), (100, ["cuInit"])]:
        called = list[str]()

        def call(name: str, begun: int = begun, called: list[str] = called) -> Any:
            return lambda *given: (called.append(name), begun)[1]

        driver: Any = SimpleNamespace(**{name: call(name) for name in ("cuInit", "cuDevicePrimaryCtxRetain")})
        wake._first_of(driver)
        assert called == asked


def test_a_backend_is_there_before_triton_is() -> None:
    """What opening waits for is begun by the backend, so importing it loads nothing that is slow."""
    program = "import irloom.backends.cuda.backend, sys; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
