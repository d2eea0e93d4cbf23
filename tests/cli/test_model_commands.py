"""`irloom dump`, `compile`, `run` on a tiny checkpoint."""

import io

import pytest

from irloom.backends.core import BUILT_IN
from irloom.cli import core
from irloom.ir.parse import parse
from irloom.ir.show import show


class TestDump:
    def test_the_text_reads_back(self, irloom, model):
        told = irloom("dump", model, "--after", "outline")
        assert told.code == 0
        assert "after: canonicalize, raise, canonicalize, outline\n" in told.out
        assert show(parse(told.out)) == told.out

    def test_after_trace_nothing_has_run(self, irloom, model):
        assert parse(irloom("dump", model, "--after", "trace").out).passes == []

    def test_a_pipeline_of_ones_own(self, irloom, model):
        assert irloom("dump", model, "--pipeline", "canonicalize", "--json").json["passes"] == [
            "canonicalize"
        ]

    def test_one_layer(self, irloom, model):
        assert irloom("dump", model, "--layer", 1).out.startswith("def layer(\n")

    def test_a_layer_that_is_not_there(self, irloom, model):
        told = irloom("dump", model, "--layer", 2)
        assert told.code == core.Exit.USER
        assert told.err.endswith(": no layer 2\nhint: it has layers 0 to 1\n")

    def test_layers_before_they_are_outlined(self, irloom, model):
        assert (
            "hint: its layers are not outlined here"
            in irloom("dump", model, "--layer", 0, "--after", "trace").err
        )

    @pytest.mark.parametrize("command", ["dump", "explain"])
    def test_why_a_pass_did_not_fire(self, irloom, model, command):
        told = irloom(command, model, "--why", "fuse-norm")
        assert told.code == 0
        first, place, reason = told.out.splitlines()[:3]
        assert first.startswith("fuse-norm: ")
        assert place.startswith("  layer.")
        assert "AddRmsNorm: 1 of 2 ops (rms_norm): x is a parameter, not add" in told.out
        assert reason.startswith("    AddRmsNorm: ")
        (found,) = irloom(command, model, "--why", "fuse-norm", "--json").json
        assert "no `layer_norm` in the program" in [miss["reason"] for miss in found["absent"]]

    def test_the_lowered_program_is_python(self, irloom, model):
        compile(irloom("dump", model, "--lowered").out, "lowered.py", "exec")

    def test_a_pass_that_is_not_in_the_pipeline(self, irloom, model):
        told = irloom("dump", model, "--after", "outlin")
        assert told.code == core.Exit.USER
        assert told.err.startswith("error: the pipeline has no pass 'outlin'\nhint: it has ")

    def test_stages_by_run_and_by_number(self, irloom, model):
        first, last = (irloom("dump", model, "--after", x).out for x in ("canonicalize:1", "canonicalize"))
        assert "after: canonicalize\n" in first
        assert "after: canonicalize, raise, canonicalize\n" in last
        assert irloom("dump", model, "--after", "3").out == last
        told = irloom("dump", model, "--after", "outline:2")
        assert told.err.startswith("error: no stage 'outline:2': outline runs once\n")

    def test_one_function(self, irloom, model):
        assert irloom("dump", model, "--function", "main").out.startswith("def main(\n")
        told = irloom("dump", model, "--function", "layr")
        assert told.code == core.Exit.USER
        assert told.err.endswith(": no function 'layr'\nhint: did you mean 'layer'?\n")

    def test_one_function_of_the_lowered_program(self, irloom, model):
        text = irloom("dump", model, "--lowered", "--layer", 1).out
        assert text.startswith("def layer(") and text in irloom("dump", model, "--lowered").out

    def test_a_graph_in_a_file(self, irloom, model, tmp_path):
        out = tmp_path / "layer.dot"
        told = irloom("dump", model, "--layer", 0, "--format", "dot", "-o", out)
        assert (told.code, told.out) == (core.Exit.OK, "")
        assert out.read_text().startswith("digraph ") and list(tmp_path.iterdir()) == [out]
        told = irloom("dump", model, "--format", "json", "-o", tmp_path / "none" / "x.json")
        assert told.code == core.Exit.USER and "x.json: cannot be written" in told.err
        assert "leave --lowered and --json out" in irloom("dump", model, "--format", "dot", "--json").err

    def test_every_format_there_is_can_be_asked_for(self):
        from irloom.cli.dump import FORMATS
        from irloom.export import FORMATS as WRITTEN

        assert ("text", *WRITTEN) == FORMATS

    def test_what_almost_happened_is_said_beside_the_program(self, irloom, tmp_path):
        rows = ("s = silu(g)", "y = mul(s, u)", "return y, s")
        head = "# irloom 1\ndef main(g: f32[T, 8], u: f32[T, 8]):\n"
        (tmp_path / "p.irloom").write_text(head + "".join(f"    {row}\n" for row in rows))
        told = irloom("dump", tmp_path / "p.irloom", "--pipeline", "fuse-mlp")
        assert told.err == "fuse-mlp changed nothing, 1 near miss: --why fuse-mlp shows them\n"
        assert "near" not in told.out

    def test_an_engine_has_one_stage(self, irloom, engine):
        told = irloom("dump", engine, "--after", "outline")
        assert told.code == core.Exit.USER
        assert "an engine holds its final program and no other" in told.err

    def test_a_pipeline_that_cannot_run(self, irloom, model):
        told = irloom("dump", model, "--pipeline", "kv-cache(pge=3)")
        assert told.code == core.Exit.USER
        assert told.err.startswith("error: kv-cache: no option 'pge'")

    def test_a_model_that_is_not_there(self, irloom, tmp_path):
        told = irloom("dump", tmp_path / "nothing")
        assert told.code == core.Exit.USER
        assert "nothing" in told.err

    def test_a_target_that_is_not_there(self, irloom, model):
        told = irloom("dump", model, "--target", "cpuu")
        assert told.err == f"error: no target 'cpuu'\nhint: there are {', '.join(BUILT_IN)}\n"


class TestCompile:
    def test_an_engine_is_a_directory(self, irloom, model, tmp_path):
        told = irloom("compile", model, "-o", tmp_path / "engine", "--json")
        assert told.json["engine"] == str(tmp_path / "engine")
        assert told.json["bytes"] > 0
        assert (tmp_path / "engine" / "manifest.json").is_file()
        assert told.err == "", "quiet where stderr is not a terminal"

    def test_an_engine_runs_and_dumps_like_its_model(self, irloom, model, engine):
        asked = ("Once upon", "--max-tokens", 12)
        assert irloom("run", engine, *asked).out == irloom("run", model, *asked).out
        assert irloom("dump", engine).out == irloom("dump", model).out


class TestRun:
    def test_text_streams_to_stdout(self, irloom, engine):
        told = irloom("run", engine, "Once upon", "--max-tokens", 8)
        assert told.code == 0
        assert told.out.endswith("\n")
        assert told.err == ""

    def test_an_engine_brings_its_target_and_its_passes(self, irloom, model, tmp_path):
        engine = tmp_path / "engine"
        assert irloom("compile", model, "-o", engine, "--target", "reference").code == 0
        assert irloom("run", engine, "a", "--max-tokens", "2").code == 0
        told = irloom("run", engine, "a", "--target", "cpu")
        assert told.err == f"error: {engine} was built for reference, not for cpu\n"
        told = irloom("run", engine, "a", "--without", "gather-logits")
        assert told.err == (
            f"error: {engine}: an engine's passes have run\nhint: compile the model with this pipeline\n"
        )

    def test_a_seed_repeats_the_draws(self, irloom, engine):
        asked = ("run", engine, "Once", "--temperature", 1.5, "--top-k", 50, "--seed", 7, "--max-tokens", 12)
        assert irloom(*asked).out == irloom(*asked).out

    def test_the_prompt_may_come_from_stdin(self, irloom, engine, monkeypatch):
        asked = ("--max-tokens", 8)
        given = irloom("run", engine, "Once upon", *asked).out
        monkeypatch.setattr("sys.stdin", io.StringIO("Once upon"))
        assert irloom("run", engine, *asked).out == given

    @pytest.mark.parametrize(
        ("prompt", "options", "named"),
        [
            ("hi", ["--temperature", "nan"], "temperature"),
            ("hi", ["--top-p", "1.5"], "top_p"),
            ("hi", ["--max-tokens", "0"], "max_tokens"),
            ("", [], "prompt: 0 tokens"),
            ("x" * 4000, [], "prompt"),
            ("hi", ["--max-tokens", "many"], "many"),
        ],
    )
    def test_a_request_that_cannot_be_served(self, irloom, engine, prompt, options, named):
        told = irloom("run", engine, prompt, *options)
        assert told.code == core.Exit.USER
        assert told.err.startswith("error: ")
        assert named in told.err.splitlines()[0]
        assert "Traceback" not in told.err

    def test_an_engine_edited_by_one_byte_is_refused(self, irloom, model, tmp_path):
        irloom("compile", model, "-o", tmp_path / "engine")
        text = tmp_path / "engine" / "module.irloom"
        text.write_bytes(text.read_bytes().replace(b"add", b"sub", 1))
        told = irloom("run", tmp_path / "engine", "hi")
        assert told.code == core.Exit.USER
        assert "module.irloom" in told.err
