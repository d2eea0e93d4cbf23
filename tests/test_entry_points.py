"""Installed packages that bring passes, ops, frontends and targets, as pip would leave them on disk."""

import os
import subprocess
import sys

import pytest
import torch

from irloom.backends.core import BUILT_IN, Backend, backend, backends
from irloom.driver import Choice, passes_of, targets
from irloom.driver.core import _loaded, _plugins
from irloom.frontends.core import TraceOptions, frontend_of
from irloom.ir.errors import IRError, PipelineError, TraceError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.op import OPS
from irloom.ir.parse import parse
from irloom.ir.plugins import PluginWarning, fulfils, origin, sources
from irloom.passes import PASSES, load_plugin, parse_pipeline, spell
from tests.packages import install, pass_file


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def op_file(name):
    return f'''
from irloom import op

@op("~b -> ~b")
def {name}(x):
    """Twice ``x``."""
    return x + x
'''


class TestOps:
    def test_a_program_that_names_an_op_loads_the_package_that_offers_it(self, site):
        install(
            site,
            "loom-twice",
            {"loom_twice.py": op_file("loom_twice")},
            {"irloom.ops": {"loom_twice": "loom_twice"}},
        )
        assert "loom_twice" not in OPS
        m = parse("def main(x: f32[T]):\n    y = loom_twice(x)\n    return y")
        (y,) = Interpreter(m)(torch.ones(3))
        assert y.tolist() == [2, 2, 2]
        assert str(origin(OPS["loom_twice"].reference)) == "loom-twice 1.0"

    def test_the_entry_point_need_not_be_called_as_its_ops(self, site):
        install(
            site, "loom-pair", {"loom_pair.py": op_file("loom_pair")}, {"irloom.ops": {"ops": "loom_pair"}}
        )
        parse("def main(x: f32[T]):\n    y = loom_pair(x)\n    return y")

    def test_a_package_that_does_not_load_is_named_where_its_op_is_wanted(self, site):
        install(
            site, "loom-bad", {"loom_bad.py": "import nothing_here"}, {"irloom.ops": {"wail": "loom_bad"}}
        )
        with pytest.raises(IRError) as caught:
            parse("def main(x: f32[T]):\n    y = wail(x)\n    return y")
        assert str(caught.value) == (
            "op 'wail' of loom-bad 1.0 does not load: ModuleNotFoundError: No module named 'nothing_here'\n"
            "hint: `pip install -U loom-bad` or `pip uninstall loom-bad`\n"
            f"  --> {site}/loom_bad.py:1"
        )
        with pytest.warns(PluginWarning, match="left out: op 'wail' of loom-bad"):
            OPS.find("another")

    def test_an_op_that_is_there_already_is_told_with_both_places(self, site):
        install(site, "loom-lin", {"loom_lin.py": op_file("linear")}, {"irloom.ops": {"line": "loom_lin"}})
        with pytest.raises(IRError) as caught:
            OPS["line"]
        said = str(caught.value)
        assert said.startswith(
            "op 'line' of loom-lin 1.0 does not load: IRError: op 'linear' is defined twice: in "
        )
        assert f"in {site}/loom_lin.py:" in said


FRONTEND = """
from irloom.ir.parse import parse

class Loom:
    name = "loom"

    def claims(self, path):
        return path.suffix == ".loom"

    def trace(self, path, options):
        return parse("def main(x: f32[T]):\\n    y = neg(x)\\n    return y")

    checkpoint = facts = tokenizer = trace
"""


class TestFrontends:
    def test_a_package_reads_a_kind_of_file(self, site):
        install(
            site, "loom-read", {"loom_read.py": FRONTEND}, {"irloom.frontends": {"loom": "loom_read:Loom"}}
        )
        (site / "model.loom").write_text("weft")
        found = frontend_of(site / "model.loom")
        assert found.name == "loom"
        assert "neg(x)" in str(found.trace(site / "model.loom", TraceOptions()))

    def test_one_that_is_not_whole_is_left_out_with_what_it_lacks(self, site):
        install(
            site,
            "loom-half",
            {"loom_half.py": FRONTEND.replace("facts = ", "")},
            {"irloom.frontends": {"half": "loom_half:Loom"}},
        )
        (site / "model.loom").write_text("weft")
        with pytest.warns(PluginWarning) as warned, pytest.raises(TraceError) as caught:
            frontend_of(site / "model.loom")
        assert str(warned[0].message) == (
            "left out: frontend 'half' of loom-half 1.0 is loom_half:Loom, "
            "a Loom without facts: see irloom.frontends.core\n"
            "hint: `pip install -U loom-half` or `pip uninstall loom-half`"
        )
        assert str(caught.value).startswith(
            f"{site / 'model.loom'}: no frontend claims it (asked: text, gguf,"
        )

    def test_an_empty_file_is_said_to_be_empty(self, tmp_path):
        (tmp_path / "model.gguf").touch()
        with pytest.raises(TraceError) as caught:
            frontend_of(tmp_path / "model.gguf")
        assert str(caught.value) == (
            f"{tmp_path / 'model.gguf'}: the file is empty\nhint: copy or download it again"
        )


BACKEND = """
class Loom:
    name, dtype, pipeline, later = "loom", "f32", ("canonicalize", "raise"), ()

    def lacks(self):
        return "a shuttle"

    def lowered(self, m):
        return "woven"

    build = open = wake = prepare = fallbacks = declined = fingerprint = lowered
"""


class TestTargets:
    def test_a_package_brings_a_target(self, site):
        install(
            site, "loom-weave", {"loom_weave.py": BACKEND}, {"irloom.backends": {"loom": "loom_weave:Loom"}}
        )
        assert backends() == [*BUILT_IN, "loom"]
        assert backend("loom").lowered(Module({})) == "woven"
        assert targets()["loom"] == "a shuttle"
        assert [spell(p) for p in passes_of(Choice("loom", with_=("fuse-mlp",)))] == [
            "canonicalize",
            "raise",
            "fuse-mlp",
        ]

    def test_irlooms_own_have_all_that_others_need(self):
        for name in BUILT_IN:
            assert fulfils(Backend)(backend(name)).name == name

    def test_an_unknown_target_is_told_what_there_is(self, site):
        install(site, "loom-spin", {"loom_spin.py": BACKEND}, {"irloom.backends": {"spin": "loom_spin:Loom"}})
        with pytest.raises(PipelineError) as caught:
            backend("spun")
        assert str(caught.value) == f"no target 'spun'\nhint: there are {', '.join(BUILT_IN)}, spin"

    def test_one_that_does_not_load_says_so_among_the_targets(self, site):
        install(site, "loom-torn", {"loom_torn.py": "1 / 0"}, {"irloom.backends": {"torn": "loom_torn:Loom"}})
        said = "target 'torn' of loom-torn 1.0 does not load: ZeroDivisionError: division by zero"
        assert targets()["torn"] == said
        with pytest.raises(PipelineError, match=said):
            backend("torn")

    def test_one_of_irlooms_own_is_taken(self, site):
        install(site, "loom-cpu", {"loom_cpu.py": BACKEND}, {"irloom.backends": {"cpu": "loom_cpu:Loom"}})
        with pytest.raises(PipelineError) as caught:
            backend("cpu")
        assert str(caught.value) == (
            "target 'cpu' is defined by both irloom itself and loom-cpu 1.0\nhint: `pip uninstall loom-cpu`"
        )


class TestEngines:
    def test_an_engine_made_by_another_state_of_a_plugins_code_is_not_used_again(self, site, tmp_path):
        """The key of the cache of engines holds every file of a pass's package."""
        files = {
            "loom_key/__init__.py": "",
            "loom_key/rules.py": "WORD = 1\n",
            "loom_key/p.py": pass_file("P"),
        }
        install(site, "loom-key", files, {"irloom.passes": {"key": "loom_key.p:P"}})
        (p,) = parse_pipeline("key")
        found = sources([type(p), type(parse_pipeline("raise")[0])])
        assert [f.relative_to(site).name for f in found] == ["__init__.py", "p.py", "rules.py"]

    def test_an_engine_is_made_anew_when_a_file_that_only_adds_a_kernel_is_loaded(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(PASSES, "loaded", {})
        before = _plugins([])
        (tmp_path / "adds_a_kernel.py").write_text("KERNEL = 1\n")
        load_plugin(tmp_path / "adds_a_kernel.py")
        assert _plugins([]) != before
        assert _loaded([], []) == ["--plugin", str(tmp_path / "adds_a_kernel.py")]


class TestChoice:
    """What a user says of a pipeline, and the passes of packages in it."""

    def texts(self, **said):
        return [spell(p) for p in passes_of(Choice("reference", **said))]

    @pytest.fixture
    def quiet(self, site):
        """A package whose pass joins the reference target."""
        order = "after = ('raise',)\n    before = ('outline',)"
        facts = f"{order}\n    targets = ('reference',)\n    level: int = 1\n"
        install(
            site,
            "loom-quiet",
            {"loom_quiet.py": pass_file("Quiet", facts)},
            {"irloom.passes": {"quiet": "loom_quiet:Quiet"}},
        )

    def test_an_installed_pass_joins_the_targets_that_it_names(self, quiet):
        plain, cpu = self.texts(), [spell(p) for p in passes_of(Choice("cpu"))]
        assert plain[:5] == ["canonicalize", "raise", "quiet", "canonicalize", "outline"]
        assert "quiet" not in cpu

    def test_it_is_left_out_or_given_options_or_a_place_of_the_users_choice(self, quiet):
        plain = self.texts()
        without = [text for text in plain if text != "quiet"]
        assert self.texts(without=("quiet",)) == without
        assert self.texts(with_=("quiet(level=3)",)) == [t.replace("quiet", "quiet(3)") for t in plain]
        assert self.texts(pipeline="canonicalize, raise") == ["canonicalize", "raise"]
        assert self.texts(pipeline="default") == plain
        assert self.texts(pipeline="canonicalize, raise, quiet, default")[:4] == [
            "canonicalize",
            "raise",
            "quiet",
            "canonicalize",
        ]

    def test_options_of_a_pass_of_the_targets_own_are_changed_in_its_place(self):
        assert "kv-plan(32)" in self.texts(with_=("kv-plan(page=32)",))

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            (
                {"without": ("outlin",)},
                "the pipeline for reference has no pass 'outlin' to leave out\nhint: did you mean 'outline'?",
            ),
            ({"with_": ("fuse-nrm",)}, "no pass 'fuse-nrm'\nhint: did you mean 'fuse-norm'?"),
            ({"with_": ("kv-plan(page=0.5)",)}, "kv-plan: option `page` is 0.5, not an integer"),
            (
                {"pipeline": "raise, default"},
                (
                    "raise must run after canonicalize\n"
                    "hint: raise says after = ('canonicalize',): exchange the two"
                ),
            ),
        ],
    )
    def test_a_mistake_is_named(self, said, message):
        with pytest.raises(PipelineError) as caught:
            self.texts(**said)
        assert str(caught.value) == message

    def test_default_needs_a_target(self):
        with pytest.raises(PipelineError) as caught:
            parse_pipeline("default, raise")
        assert str(caught.value) == (
            "pipeline: `default` is the pipeline of a target, and no target is given\n"
            "hint: irloom.driver.passes_of(Choice(target, pipeline)) has one"
        )

    def test_a_pass_that_finds_no_place_stops_the_pipeline_and_can_be_left_out(self, site):
        facts = "after = ('kv-plan',)\n    before = ('outline',)\n    targets = ('reference',)"
        install(
            site,
            "loom-lost",
            {"loom_lost.py": pass_file("Lost", facts)},
            {"irloom.passes": {"lost": "loom_lost:Lost"}},
        )
        with pytest.raises(PipelineError) as caught:
            self.texts()
        assert str(caught.value) == (
            "lost must run after kv-plan (lost says after) and before outline (lost says before): "
            "outline comes before kv-plan\nhint: leave lost out, or one of the two"
        )
        assert "lost" not in self.texts(without=("lost",))


class TestCommandLine:
    def irloom(self, site, *args):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
        command = [sys.executable, "-m", "irloom", *map(str, args)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def test_what_is_installed_is_listed_and_what_does_not_load_is_one_warning(self, tmp_path):
        facts = "after = ('raise',)\n    targets = ('loom',)"
        files = {"loom_all.py": pass_file("Hush", facts) + BACKEND + op_file("loom_hush")}
        offers = {
            "irloom.passes": {"hush": "loom_all:Hush"},
            "irloom.ops": {"loom_hush": "loom_all"},
            "irloom.backends": {"loom": "loom_all:Loom"},
        }
        install(tmp_path, "loom-all", files, offers, version="0.3")
        install(tmp_path, "loom-bad", {"loom_b.py": "1 / 0"}, {"irloom.passes": {"bad": "loom_b:Bad"}})
        told = self.irloom(tmp_path, "passes")
        assert told.returncode == 0
        assert told.stderr == (
            "warning: left out: pass 'bad' of loom-bad 1.0 does not load: "
            "ZeroDivisionError: division by zero\n"
            "hint: `pip install -U loom-bad` or `pip uninstall loom-bad`\n"
            f"  --> {tmp_path}/loom_b.py:1\n"
        )
        (row,) = [line.split() for line in told.stdout.splitlines() if line.startswith("hush ")]
        assert row == ["hush", "What", "Hush", "is", "for.", "loom-all", "0.3"]
        assert told.stdout.endswith(
            "\nloom\n   1  canonicalize\n   2  raise\n   3  hush          hush says after raise\n"
        )

    def test_the_doctor_says_what_is_installed_and_what_is_wrong_with_it(self, tmp_path):
        install(tmp_path, "loom-weave", {"loom_w.py": BACKEND}, {"irloom.backends": {"loom": "loom_w:Loom"}})
        install(tmp_path, "loom-bad", {"loom_b.py": "1 / 0"}, {"irloom.ops": {"bad": "loom_b"}})
        told = self.irloom(tmp_path, "doctor").stdout
        assert "\n  loom       a shuttle\n" in told
        assert told.endswith(
            "\nplugins\n"
            "  loom-bad 1.0    op bad       "
            "op 'bad' of loom-bad 1.0 does not load: ZeroDivisionError: division by zero\n"
            "  loom-weave 1.0  target loom\n"
        )

    def test_asked_for_by_name_it_is_an_error(self, tmp_path):
        install(tmp_path, "loom-bad", {"loom_b.py": "1 / 0"}, {"irloom.passes": {"bad": "loom_b:Bad"}})
        told = self.irloom(tmp_path, "pass", "bad")
        assert (told.returncode, told.stdout) == (1, "")
        assert told.stderr == (
            "error: pass 'bad' of loom-bad 1.0 does not load: ZeroDivisionError: division by zero\n"
            "hint: `pip install -U loom-bad` or `pip uninstall loom-bad`\n"
            f"  --> {tmp_path}/loom_b.py:1\n"
        )

    def test_help_imports_no_plugin_and_nothing_heavy(self, tmp_path):
        install(tmp_path, "loom-bad", {"loom_b.py": "1 / 0"}, {"irloom.passes": {"bad": "loom_b:Bad"}})
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        code = (
            "import sys, irloom.cli\n"
            "try: irloom.cli.main(['--help'])\n"
            "finally: print([m for m in ('torch', 'loom_b', 'irloom.ir.plugins') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("[]\n")
