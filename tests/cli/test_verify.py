"""`irloom verify` and `irloom bisect`, as a shell sees them."""

import json

import pytest

from irloom.cli import core
from irloom.passes.registry import PASSES

PLUGIN = '''"""Multiply by two, wrongly."""
from dataclasses import dataclass
from irloom import Pass, Rewrite, apply
from irloom.ir.ops import add, mul

class Halve(Rewrite):
    def match(self, x, y):
        return add(x, y)

    def replace(self, x, y):
        return mul(x, 2.0)

@dataclass(frozen=True)
class Wrong(Pass):
    def run(self, m):
        return apply(m, [Halve()])
'''
PROGRAM = """# irloom 1   model: sum
def main(x: f32[T, 4], y: f32[T, 4]):
    a = exp(x)
    b = exp(y)
    s = add(a, b)
    t = sin(s)
    return t
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "sum.irloom").write_text(PROGRAM)
    return tmp_path / "sum.irloom"


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """A pass that is loaded from a file, for the length of a test."""
    (tmp_path / "wrong.py").write_text(PLUGIN)
    monkeypatch.setattr(PASSES, "_files", dict(PASSES._files))
    monkeypatch.setattr(PASSES, "names", dict(PASSES.names))
    return "--plugin", tmp_path / "wrong.py", "--pipeline", "canonicalize, wrong"


class TestVerify:
    def test_a_checkpoint_is_verified_with_its_weights(self, irloom, model):
        told = irloom("verify", model, "--json")
        assert told.code == 0 and told.json["ok"]
        rows = {row["pass"]: row for row in told.json["passes"]}
        cached = rows["kv-cache"]
        assert cached["ok"] and 0 <= cached["measured"] <= cached["allowed"]
        assert cached["top1"] == 1.0 and cached["kl"] < 1e-6 and cached["cosine"] > 0.999
        assert rows["absorb-mla"]["changes"] == 0 and "measured" not in rows["absorb-mla"]

    def test_a_config_is_enough_with_random_weights(self, irloom, model, tmp_path):
        (tmp_path / "config.json").write_text((model / "config.json").read_text())
        told = irloom("verify", tmp_path, "--random", "--layers", 2, "--by-layer", "--json")
        assert told.code == 0
        rows = [row for row in told.json["passes"] if row.get("layers")]
        assert rows and all(list(row["layers"]) == ["layer 0", "layer 1"] for row in rows)
        refused = irloom("verify", tmp_path)
        assert refused.code == core.Exit.USER and "safetensors" in refused.err

    def test_the_table_names_what_is_wrong_and_the_exit_code_is_1(self, irloom, program, wrong):
        told = irloom("verify", program, *wrong)
        assert told.code == 1
        head, *rows = told.out.splitlines()[1:4]
        assert head.split()[:2] == ["pass", "changes"]
        assert [row.split()[0] for row in rows] == ["canonicalize", "wrong"] and rows[1].endswith("BAD")

    def test_a_lossy_pass_is_held_to_its_budget(self, irloom, model):
        told = irloom("verify", model, "--with", "quantize(int8)", "--json").json
        (row,) = [row for row in told["passes"] if row["pass"] == "quantize"]
        assert row["ok"] and row["measured"] == row["norm"] > 1e-4
        assert row["allowed"] == pytest.approx(0.02 * 2**0.5)  # two layers

    def test_the_engine_is_compared_with_the_interpreter(self, irloom, model):
        told = irloom("verify", model, "--pipeline", "default", "--engine", "--json")
        row = told.json["passes"][-1]
        assert told.code == 0 and row["pass"] == "engine (cpu)"
        assert row["ok"] and 0 < row["measured"] <= row["allowed"] and row["rows"] > 20

    def test_a_device_that_is_not_there(self, irloom, program):
        told = irloom("verify", program, "--device", "abacus")
        assert told.err == "error: --device abacus: no such device\nhint: cpu, cuda or cuda:1\n"

    @pytest.mark.parametrize("command", ["verify", "bisect", "view", "explain"])
    def test_an_element_that_weights_cannot_have(self, irloom, program, command):
        for name in ("foo", "i32"):
            told = irloom(command, program, "--dtype", name)
            assert told.code == core.Exit.USER
            assert told.err.startswith(
                f"error: '{name}' is no element of weights and activations\nhint: one of"
            )

    def test_a_program_that_is_not_text(self, irloom, program):
        program.write_bytes(program.read_bytes() + b"\xff")
        told = irloom("verify", program)
        assert told.code == core.Exit.USER and "is not UTF-8" in told.err

    def test_an_engine_has_no_passes_left_to_verify(self, irloom, engine):
        told = irloom("verify", engine)
        assert told.code == core.Exit.USER and "verify the model that it was compiled from" in told.err


class TestBisect:
    def test_it_names_the_rewrite_and_writes_a_file_that_verify_runs(self, irloom, program, wrong, tmp_path):
        out = tmp_path / "found.irloom"
        told = irloom("bisect", program, *wrong, "-o", out, "--json")
        assert told.code == 1
        found = told.json
        assert (found["pass"], found["rewrite"]) == ("wrong", "main.s: Halve")
        assert found["statements"] == 1 and "add(" in found["before"] and "mul(" in found["after"]
        again = irloom("verify", out, *wrong[:2])
        assert again.code == 1 and "BAD" in again.out
        assert irloom("dump", out, "--after", "trace").code == 0
        for more in (["--engine"], ["--with", "quantize(int8)"], ["--pipeline", "raise"]):
            told = irloom("verify", out, *wrong[:2], *more)
            assert told.code == core.Exit.USER and "no other is run" in told.err

    def test_a_pass_that_asks_for_no_fuel_has_no_first_change(self, irloom, program, tmp_path, wrong):
        wrong[1].write_text(PLUGIN.replace("return apply(m, [Halve()])", "raise ValueError"))
        told = irloom("bisect", program, *wrong, "-o", tmp_path / "found.irloom")
        assert "rewrite" in told.out and "(change" not in told.out

    def test_it_prints_the_smallest_program_before_and_after(self, irloom, program, wrong, tmp_path):
        told = irloom("bisect", program, *wrong, "-o", tmp_path / "found.irloom").out
        assert "rewrite  main.s: Halve  (change 1 of 1)" in told
        assert "-    s: f32[T, 4] = add(a, b)" in told
        assert "+    s: f32[T, 4] = mul(a, 2.0)" in told

    def test_a_file_that_cannot_be_written(self, irloom, program, wrong, tmp_path):
        told = irloom("bisect", program, *wrong, "-o", tmp_path / "missing" / "found.irloom")
        assert told.code == core.Exit.USER and "cannot be written" in told.err

    def test_where_all_is_right_it_says_so(self, irloom, program, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        told = irloom("bisect", program)
        assert (told.code, told.out) == (0, "every pass is right\n")
        assert json.loads(irloom("bisect", program, "--json").out) == {"ok": True}
        assert [p.name for p in tmp_path.iterdir()] == ["sum.irloom"]
