"""Facts about the machine that engines are fitted to and `irloom doctor` shows."""

import os

from irloom.backends import machine


def test_facts_are_plausible():
    assert machine.cpu_name()
    assert set(machine.cpu_features()) <= set(machine.FEATURES)
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert machine.memory() > 1 << 28


def test_bandwidth_is_measured():
    assert machine.read_bandwidth(nbytes=1 << 20, repeats=1) > 0


def test_this_machine_is_a_device():
    cpu = machine.device("cpu")
    assert (cpu.bandwidth, cpu.memory) == (machine.read_bandwidth(), machine.memory())
    assert machine.device("cpu(f32=1T)").flops == {"f32": 10**12}
    assert machine.device("h200").name == "h200"


def test_a_compiler_that_does_not_answer_is_passed_over(monkeypatch, tmp_path):
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    machine.compiler.cache_clear()
    found = machine.compiler()
    machine.compiler.cache_clear()
    assert found is None or found.path != broken


def test_no_compiler_is_an_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    machine.compiler.cache_clear()
    found = machine.compiler()
    machine.compiler.cache_clear()
    assert found is None
