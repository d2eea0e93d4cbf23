"""`irloom op`, `passes`, `pass`, `doctor`: what there is, and its page."""

import textwrap

import pytest

from irloom.cli import core


def test_ops_are_listed_with_their_signatures(irloom):
    rows = [line.split() for line in irloom("op").out.splitlines()]
    assert ["linear", "*b", "k,", "n", "k,", "n?"] in [row[:6] for row in rows]


def test_the_page_of_an_op(irloom):
    page = irloom("op", "linear").out
    assert page.startswith('linear   "*b k, n k, n? -> *b n"')
    assert "\noperands\n  x       *b k\n  weight  n k\n  bias    n?\n" in page
    assert "matmul.py" in page.splitlines()[-1]


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
    assert {p["name"] for p in irloom("passes", "--json").json} >= {"canonicalize", "outline", "kv-cache"}


def test_the_page_of_a_pass(irloom):
    page = irloom("pass", "kv-plan").out
    assert page.startswith("kv-plan\n\n")
    assert "\noptions\n  page " in page
    assert "int = 16" in page
    assert "\nin a pipeline\n  after   kv-cache\n" in page
    assert page.endswith("\nfrom irloom\n")


def test_an_unknown_pass_is_told_the_nearest_one(irloom):
    told = irloom("pass", "outlin")
    assert (told.code, told.err) == (
        core.Exit.USER,
        "error: no pass 'outlin'\nhint: did you mean 'outline'?\n",
    )


@pytest.fixture
def quiet_py(tmp_path):
    """A file of one pass, as a user would write it."""
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
    assert page["from"] == str(quiet_py)


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
