"""examples/plugin as somebody installs it: both wheels in an environment of their own, all else borrowed."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from irloom import LLM, EngineMismatch
from irloom.backends.artifact import EngineReader
from irloom.backends.core import quiet
from irloom.backends.cpu.extern import KERNELS
from irloom.backends.cpu.program import LOWERINGS
from irloom.backends.machine import compiler
from irloom.driver import engine_for
from irloom.passes import PASSES, load_plugin
from tests.tiny import llama_config, save_model

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "examples" / "plugin"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Python, or ``irloom``, in an environment with the two wheels, away from the checkout."""
    home = tmp_path_factory.mktemp("plugin")
    for source in (ROOT, PLUGIN):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home / "wheels")]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "env")], check=True)
    python = str(home / "env" / "bin" / "python")
    irloom = home / "env" / "bin" / "irloom"
    install = ["install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    wheels = sorted(map(str, (home / "wheels").iterdir()))
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install, *wheels], check=True)
    (packages,) = (home / "env").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "XDG"))}

    def run(*args: object) -> str:
        command = [python, *(str(irloom if a == "irloom" else a) for a in args)]
        done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mamba 2, whose mixers end in a gated norm."""
    from transformers import Mamba2Config

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "state_size": 8,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 2,
    }
    folder = tmp_path_factory.mktemp("mamba")
    save_model(Mamba2Config(vocab_size=320, num_hidden_layers=2, conv_kernel=4, **sizes), folder)
    return folder


def test_it_is_listed_with_its_package(run: Run):
    pages = json.loads(run("irloom", "passes", "--json"))["passes"]
    (page,) = (p for p in pages if p["name"] == "fuse-gated-norm")
    assert page["from"]["package"] == "irloom-gated-norm"
    told = run("irloom", "op", "gated_rms_norm")
    assert "(irloom-gated-norm 0.1.0)" in told and "int64_t rows, int64_t d, float eps" in told


def test_its_own_tests_pass_where_it_is_installed(run: Run):
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", PLUGIN / "tests")
    assert "7 passed" in told


SAME_ANSWERS = """
import json, sys
import irloom
from irloom.driver import Choice, passes_of
model, home = sys.argv[1:]
tokens = []
for name, without in (("with", ()), ("without", ("fuse-gated-norm",))):
    out = irloom.compile(model, "cpu", passes_of(Choice(without=without)), out=f"{home}/{name}")
    llm = irloom.LLM(out)
    greedy = irloom.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    told = llm.generate([[5, 9, 7, 200], [3]], greedy)
    tokens.append([t.token_ids for t in told])
print(json.dumps(tokens))
"""


@pytest.mark.skipif(compiler() is None, reason="kernels need a compiler")
def test_a_model_runs_with_its_kernel(run: Run, mamba: Path, tmp_path: Path):
    lowered = run("irloom", "dump", mamba, "--lowered")
    assert "kernels.gated_rms_norm(" in lowered
    (tmp_path / "same.py").write_text(SAME_ANSWERS)
    fused, plain = json.loads(run(tmp_path / "same.py", mamba, tmp_path))
    assert fused == plain
    with_, without = ((tmp_path / name / "lowered.py").read_text() for name in ("with", "without"))
    assert "kernels.gated_rms_norm" in with_ and "kernels.gated_rms_norm" not in without
    assert "gated_rms_norm(" in run("irloom", "dump", tmp_path / "with"), "loaded by itself"
    needed = r"needs irloom-gated-norm 0\.1\.0, which is not installed, for op gated_rms_norm\nhint: pip"
    with pytest.raises(EngineMismatch, match=needed):
        EngineReader(tmp_path / "with").module()
    EngineReader(tmp_path / "without").module()


HALVED = '''
from dataclasses import dataclass
from irloom import Pass, Rewrite, apply, op
from irloom.backends.cpu import kernel
from irloom.ir.ops import silu_mul

@kernel("""
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < n; i++) out[t][i] = gate[t][i] / (1 + std::exp(-gate[t][i])) * up[t][i];
""")
@op("*b n, *b n -> *b n")
def gated_in_a_file(gate, up):
    """``silu(gate) * up``."""
    return silu_mul(gate, up)

class Rule(Rewrite):
    def match(self, gate, up):
        return silu_mul(gate, up)
    def replace(self, gate, up):
        return gated_in_a_file(gate, up)

@dataclass(frozen=True)
class GateInAFile(Pass):
    """Somebody's own gate."""
    targets = ("cpu", "reference")
    after = ("fuse-mlp",)
    def run(self, m):
        return apply(m, [Rule()])
'''


def test_a_file_of_passes_and_ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An engine says which file it needs and how to build it again; another file, another engine."""
    monkeypatch.setattr("irloom.driver.core.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(PASSES, "_files", dict(PASSES._files))
    monkeypatch.setattr(PASSES, "loaded", {})
    save_model(llama_config(num_hidden_layers=2), tmp_path / "model")
    file = tmp_path / "gate_in_a_file.py"
    file.write_text(HALVED)
    load_plugin(file)
    one = engine_for(tmp_path / "model", "cpu", None, quiet)
    manifest = EngineReader(one).manifest
    assert [(n.ops, n.file) for n in manifest.needs] == [(("gated_in_a_file",), str(file))]
    assert manifest.rebuild[-2:] == ["--plugin", str(file)]
    assert engine_for(tmp_path / "model", "cpu", None, quiet) == one
    for kernels in (KERNELS, LOWERINGS):
        monkeypatch.delitem(kernels, "gated_in_a_file")
    with pytest.raises(EngineMismatch, match="op gated_in_a_file has no kernel here, and had one when"):
        LLM(one)
    file.write_text(HALVED + "# no more\n")
    assert engine_for(tmp_path / "model", "cpu", None, quiet) != one
