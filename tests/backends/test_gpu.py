"""What is said of a machine whose GPU, driver or torch does not do."""

from __future__ import annotations

import pytest
import torch

from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import Limits
from irloom.backends.cuda.backend import BACKEND
from irloom.backends.gpu import lacking
from irloom.ir.errors import EngineMismatch

OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver\n"
    "by downloading and installing a new version."
)


def test_a_torch_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert lacking((8, 0)) == (
        f"an NVIDIA GPU and torch for CUDA: torch {torch.__version__} is for the CPU alone"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [(OLD, "too old (found version 11040)"), ("No CUDA GPUs are available", "No CUDA GPUs are available")],
)
def test_a_driver_that_is_too_old_and_a_machine_without_a_gpu(monkeypatch, said, told):
    def init() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    lack = BACKEND.lacks()
    assert lack is not None
    assert lack.startswith("an NVIDIA GPU with a driver for CUDA 13.0: ")
    assert told in lack
    assert "\n" not in lack


@pytest.mark.parametrize(("have", "fine"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_that_is_too_old(monkeypatch, have, fine):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: have)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    lack = BACKEND.lacks()
    old = "a GPU of compute capability 8.0 or newer: this is Tesla T4 (compute capability 7.5)"
    assert lack == (None if fine else old)


def test_an_engine_of_another_gpu_is_refused_with_both(tmp_path, monkeypatch):
    settings = {"fingerprint": {"gpu": "NVIDIA A100", "sm": "8.0", "triton": "3.6.0"}}
    with EngineWriter(tmp_path / "engine", Manifest("cuda", "tiny", [], {}, {}, settings=settings)):
        pass
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    told = (
        r"gpu NVIDIA A100 when built, NVIDIA H200 here; sm 8.0 when built, 9.0 here[^$]*hint: build it again"
    )
    with pytest.raises(EngineMismatch, match=told):
        BACKEND.open(EngineReader(tmp_path / "engine"), Limits())


def test_a_machine_without_a_gpu_says_so_of_any_engine(tmp_path, monkeypatch):
    with EngineWriter(
        tmp_path / "engine", Manifest("cuda", "tiny", [], {}, {}, settings={"fingerprint": {}})
    ):
        pass
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        EngineMismatch, match="runs on the GPU, but this machine lacks an NVIDIA GPU and torch"
    ):
        BACKEND.open(EngineReader(tmp_path / "engine"), Limits())
