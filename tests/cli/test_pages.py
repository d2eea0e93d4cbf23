"""`irloom op`, `passes`, `pass`, `doctor`: what there is, and its page."""

import textwrap

import pytest

from irloom.backends.core import BUILT_IN
from irloom.cli import core
from irloom.passes import PASSES
from tests.packages import install


def test_ops_are_listed_with_their_signatures(irloom):
    rows = [line.split() for line in irloom("op").out.splitlines()]
    assert ["linear", "*b", "k,", "n", "k,", "n?"] in [row[:6] for row in rows]


def test_the_page_of_an_op(irloom):
    page = irloom("op", "linear").out
    assert page.startswith('linear   "*b k, n k, n? -> *b n"')
    assert "\noperands\n  x       *b k\n  weight  n k\n  bias    n?\n" in page
    assert "matmul.py" in page.splitlines()[-1]


def test_an_op_of_a_package_is_listed_with_the_package(irloom, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from irloom import op\n\n@op('~b -> ~b')\ndef loom_hum(x):\n    'A low sound.'\n    return x\n"
    install(tmp_path, "loom-hum", {"loom_hum.py": text}, {"irloom.ops": {"hum": "loom_hum"}}, version="0.2")
    rows = [line.split() for line in irloom("op").out.splitlines()]
    assert ["loom_hum", "~b", "->", "~b", "A", "low", "sound.", "(loom-hum", "0.2)"] in rows
    assert irloom("op", "loom_hum", "--json").json["from"]["package"] == "loom-hum"


def test_attributes_show_type_and_default(irloom):
    page = irloom("op", "rms_norm", "--json").json
    assert page["name"] == "rms_norm"
    assert "eps" in page["attributes"]


def test_an_unknown_op_is_told_the_nearest_one(irloom):
    told = irloom("op", "lineer")
    assert (told.code, told.err) == (
        core.Exit.USER,
        "error: unknown op 'lineer'\nhint: did you mean 'linear'?\n",
    )


def test_passes_are_listed_with_where_they_come_from(irloom):
    rows = irloom("passes").out.splitlines()
    assert any(row.startswith("canonicalize ") and row.endswith(" irloom") for row in rows)
    pages = irloom("passes", "--json").json["passes"]
    assert {p["name"] for p in pages} >= {"canonicalize", "outline", "kv-cache"}


def test_the_order_of_each_target_is_numbered(irloom):
    out = irloom("passes").out
    assert "\ncpu\n   1  canonicalize\n   2  raise\n" in out
    assert "\nreference\n   1  canonicalize\n" in out
    only = irloom("passes", "--target", "reference", "--json").json["targets"]
    assert list(only) == ["reference"]
    assert only["reference"]["order"][1] == {"pass": "raise", "text": "raise", "own": True, "because": []}


def test_a_pass_that_is_added_says_what_holds_it_in_its_place(irloom):
    out = irloom("passes", "--target", "reference", "--with", "inline", "--without", "kv-plan").out
    rows = [line.split(maxsplit=2)[1:] for line in out.partition("\nreference\n")[2].splitlines()]
    assert rows[-1] == ["inline", "it says nothing of its order"]
    out = irloom("passes", "--target", "reference", "--with", "fuse-norm").out
    assert "   7  fuse-norm      fuse-norm says after gather-logits\n" in out


def test_an_order_that_cannot_be_is_said_for_its_target(irloom):
    told = irloom("passes", "--target", "reference", "--pipeline", "raise, canonicalize")
    assert told.code == core.Exit.USER
    assert told.out.endswith(
        "\nreference\n  raise must run after canonicalize\n"
        "  hint: raise says after = ('canonicalize',): exchange the two\n"
    )


def test_the_page_of_a_pass(irloom):
    page = irloom("pass", "kv-plan").out
    assert page.startswith("kv-plan\n\n")
    assert "\noptions\n  page " in page
    assert "int = 16" in page
    assert "\nin a pipeline\n  after   kv-cache\n" in page
    assert "\nfrom irloom\n" in page
    assert page.splitlines()[-1].endswith("irloom/passes/kv_plan.py")


def test_an_unknown_pass_is_told_the_nearest_one(irloom):
    told = irloom("pass", "outlin")
    assert (told.code, told.err) == (
        core.Exit.USER,
        "error: no pass 'outlin'\nhint: did you mean 'outline'?\n",
    )


@pytest.fixture
def quiet_py(tmp_path, monkeypatch):
    """A file of one pass, as a user would write it; forgotten when the test is over."""
    monkeypatch.setattr(PASSES, "_files", {})
    file = tmp_path / "quiet.py"
    file.write_text(
        textwrap.dedent('''
        """Change nothing."""
        from dataclasses import dataclass
        from irloom import Pass
        from irloom.passes import Changes

        @dataclass(frozen=True)
        class Quiet(Pass):
            """``level`` is how quiet."""
            level: int = 3
            after = ("canonicalize",)

            def run(self, m):
                return Changes()
        ''')
    )
    return file


def test_a_plugin_file_is_a_pass_with_the_files_name(irloom, quiet_py):
    page = irloom("pass", "quiet", "--plugin", quiet_py, "--json").json
    assert page["doc"] == "Change nothing.\n\n``level`` is how quiet."
    assert page["options"] == {"level": "int = 3"}
    assert page["after"] == ["canonicalize"]
    assert page["from"] == {"package": None, "version": None, "file": str(quiet_py)}


def test_a_plugin_may_stand_before_the_command_and_joins_its_targets(irloom, quiet_py):
    quiet_py.write_text(quiet_py.read_text().replace("after =", "targets = ('cpu',)\n    after ="))
    told = irloom("--plugin", quiet_py, "passes", "--plugin", quiet_py)
    cpu, reference = told.out.partition("\ncpu\n")[2].split("\nreference\n")
    assert "   4  quiet             quiet says after canonicalize\n   5  outline\n" in cpu
    assert "quiet" not in reference
    told = irloom("--plugin", quiet_py, "passes", "--without", "quiet", "--target", "cpu")
    assert "quiet" not in told.out.partition("\ncpu\n")[2]


def test_a_misspelt_name_in_its_order_is_noted(irloom, quiet_py):
    text = quiet_py.read_text()
    quiet_py.write_text(text.replace('("canonicalize",)', '("canonicalise",)\n    targets = ("gpu",)'))
    told = irloom("--plugin", quiet_py, "passes", "--target", "reference")
    assert told.out.endswith(
        "\nnote: quiet says after 'canonicalise', which is not installed; did you mean 'canonicalize'?\n"
        "\nnote: quiet says targets 'gpu', which is not installed; did you mean 'cpu'?\n"
    )


def test_a_target_that_is_not_there_is_named(irloom):
    told = irloom("passes", "--target", "tpu")
    assert (told.code, told.out) == (core.Exit.USER, "")
    assert told.err == f"error: no target 'tpu'\nhint: there are {', '.join(BUILT_IN)}\n"


def test_two_plugins_of_one_name_are_both_named(irloom, quiet_py, tmp_path):
    other = tmp_path / "other" / "quiet.py"
    other.parent.mkdir()
    other.write_text(quiet_py.read_text())
    told = irloom("--plugin", quiet_py, "passes", "--plugin", other)
    assert (told.code, told.err.splitlines()[0]) == (
        core.Exit.USER,
        f"error: --plugin: {quiet_py} and {other} have one name, and it is that of the pass",
    )


def test_a_plugin_that_does_not_load_is_named(irloom, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    told = irloom("passes", "--plugin", broken)
    assert told.code == core.Exit.USER
    assert f"error: plugin {broken} does not load: ModuleNotFoundError" in told.err


def test_doctor_tells_the_machine_and_its_targets(irloom):
    facts = irloom("doctor", "--json").json
    assert facts["packages"]["torch"]
    assert facts["read_gb_per_s"] > 0
    assert facts["targets"]["reference"] is None
    page = irloom("doctor").out
    assert "\ntargets\n" in page
    assert "cores usable" in page
