"""What does not fit on a GPU is said before it is tried: how much is needed, what is free, what helps."""

from pathlib import Path

import pytest
import torch

import irloom
from irloom.backends.cuda import backend
from irloom.backends.cuda.room import Room, told
from irloom.ir.errors import OutOfMemory, RequestError
from tests.tiny import llama_config, save_model

GIB = 1 << 30


def room(**bytes_of: int) -> Room:
    return Room(**{"free": 24 * GIB, "total": 24 * GIB, "weights": 16 * GIB, "step": GIB} | bytes_of)


def test_caches_get_what_is_left() -> None:
    left = room().for_caches()
    assert 5 * GIB < left < 7 * GIB
    assert room().for_caches(GIB) == GIB


@pytest.mark.parametrize(
    ("given", "asked", "hint"),
    [
        ({"weights": 30 * GIB}, None, "quantize"),
        ({"step": 10 * GIB}, None, "max_tokens"),
        ({}, 10 * GIB, "memory"),
        ({"free": 4 * GIB}, None, "else runs"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_helps(
    given: dict[str, int], asked: int | None, hint: str
) -> None:
    with pytest.raises(RequestError, match=r"the GPU has .* GB free of 25.8 GB, but weights take") as error:
        room(**given).for_caches(asked)
    assert hint in str(error.value)


NONE = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 5.04 "
    "GiB is free. Including non-PyTorch memory, this process has 134.76 GiB memory in use."
)


def test_memory_that_something_else_took_meanwhile_is_told() -> None:
    broken_off = RuntimeError("a capture broke off")
    broken_off.__context__ = torch.OutOfMemoryError(NONE)
    with pytest.raises(OutOfMemory) as error, told("a step", "a smaller one"):
        raise broken_off
    assert str(error.value) == (
        "cuda: no memory for a step: Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB "
        "of which 5.04 GiB is free\nhint: a smaller one"
    )
    with pytest.raises(ZeroDivisionError), told("a step", "a smaller one"):
        raise ZeroDivisionError


def test_an_engine_that_runs_out_of_memory_as_it_opens_says_what_lowers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*given: object) -> None:
        raise torch.OutOfMemoryError(NONE)

    save_model(llama_config(), tmp_path / "model")
    monkeypatch.setattr(backend.CudaBackend, "lacks", lambda self: "a GPU that kernels are compiled for")
    engine = irloom.compile(tmp_path / "model", "cuda", out=tmp_path / "engine")
    monkeypatch.setattr(backend.CudaBackend, "lacks", lambda self: None)
    monkeypatch.setattr(backend, "read_weights", none)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * GIB, 40 * GIB))
    with pytest.raises(OutOfMemory, match=r"no memory for the engine.*5.04 GiB is free[^$]*`memory`"):
        irloom.LLM(engine)
