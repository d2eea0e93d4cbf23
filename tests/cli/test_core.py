"""What every command shares: help, exit codes, how an error is shown, plugins."""

import os
import subprocess
import sys

import pytest

from irloom.cli import core
from irloom.ir.errors import IRError

COMMANDS = [
    "run",
    "compile",
    "dump",
    "diff",
    "view",
    "explain",
    "verify",
    "bisect",
    "passes",
    "pass",
    "op",
    "bench",
    "zoo",
    "doctor",
]


def test_help_lists_every_command_in_order(irloom):
    told = irloom("--help")
    _, _, listed = told.out.partition("Commands:\n")
    assert told.code == 0
    assert [line.split()[0] for line in listed.splitlines()] == COMMANDS
    assert "..." not in listed, "a command's first sentence fits on its line"


def test_no_arguments_show_the_help(irloom):
    assert "Commands:" in irloom().err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_of_its_own_and_takes_plugins(irloom, name):
    told = irloom(name, "--help")
    assert told.code == 0
    assert told.out.startswith(f"Usage: irloom {name}")
    assert "--plugin FILE.py" in told.out


@pytest.mark.parametrize("name", ["passes", "pass", "op", "dump", "bench", "doctor", "compile"])
def test_a_command_that_reads_takes_json(irloom, name):
    assert "--json" in irloom(name, "--help").out


def test_version(irloom):
    assert irloom("--version").out.startswith("irloom 0.")


def test_a_misspelt_command_is_told_the_nearest_one(irloom):
    told = irloom("dmup")
    assert told.code == core.Exit.USER
    assert told.err.startswith("error: No such command 'dmup'.")
    assert "Did you mean 'dump'?" in told.err
    assert "hint: `irloom --help` shows what there is" in told.err


def test_a_misspelt_option_is_told_the_nearest_one(irloom):
    told = irloom("run", "model", "--max-token", "3")
    assert told.code == core.Exit.USER
    assert "--max-tokens" in told.err


def test_a_missing_argument_is_a_users_mistake(irloom):
    told = irloom("dump")
    assert told.code == core.Exit.USER
    assert told.err.startswith("error: Missing argument 'MODEL'.")


@pytest.fixture
def failing(monkeypatch):
    """A command `fail` that raises what it is given."""

    def add(error):
        @core.command("fail")
        def fail():
            raise error

        monkeypatch.setitem(core.irloom.commands, "fail", fail)

    return add


def test_an_error_of_ours_is_a_message_and_a_hint_without_traceback(irloom, failing):
    failing(IRError("linear: dim `k` is 8, but operand `weight` makes it 9", hint="transpose it"))
    told = irloom("fail")
    assert told.code == core.Exit.USER
    assert told.err == "error: linear: dim `k` is 8, but operand `weight` makes it 9\nhint: transpose it\n"


def test_debug_shows_the_traceback_of_what_a_pass_raised(irloom, tmp_path):
    program, fragile = tmp_path / "program.irloom", tmp_path / "fragile.py"
    program.write_text("# irloom 1\nT: dim[1, 8]\n\ndef main(x: f32[T]):\n    return x\n")
    fragile.write_text(
        "from irloom.passes import Pass\n\nclass Fragile(Pass):\n    'Breaks.'\n"
        "    def run(self, m):\n        return 1 / 0\n"
    )
    words = (
        "dump",
        tmp_path / "program.irloom",
        "--plugin",
        tmp_path / "fragile.py",
        "--pipeline",
        "fragile",
    )
    quiet, told = irloom(*words), irloom("--debug", *words)
    assert quiet.code == told.code == core.Exit.USER
    assert quiet.err == (
        "error: pass fragile raised ZeroDivisionError: division by zero\n"
        f"hint: `irloom --debug` shows the traceback\n  --> {fragile}:6 in run\n"
    )
    assert "ZeroDivisionError: division by zero\n\nThe above exception was the direct cause" in told.err
    assert told.err.endswith(quiet.err)


def test_a_mistake_of_ours_shows_where_it_is(irloom, failing):
    failing(ZeroDivisionError("division by zero"))
    told = irloom("fail")
    assert told.code == core.Exit.INTERNAL
    assert "Traceback" in told.err
    assert "internal error: ZeroDivisionError: division by zero" in told.err


def test_an_interrupt_is_quiet(irloom, failing):
    failing(KeyboardInterrupt())
    told = irloom("fail")
    assert (told.code, told.err) == (core.Exit.INTERRUPTED, "\ninterrupted\n")


def test_a_plugin_that_is_not_there_is_a_users_mistake(irloom):
    told = irloom("passes", "--plugin", "nowhere.py")
    assert told.code == core.Exit.USER
    assert "nowhere.py" in told.err


def test_a_reader_that_leaves_early_is_met_with_silence():
    """As in `irloom --help | head -0`: the pipe is closed before anything is written to it."""
    read, write = os.pipe()
    os.close(read)
    help_ = [sys.executable, "-c", "import irloom.cli; irloom.cli.main(['--help'])"]
    done = subprocess.run(help_, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


def test_a_table_pads_all_columns_but_the_last(capsys):
    core.print_table([("a", "long cell", "x"), ("bcd", "y", "")])
    assert capsys.readouterr().out == "a    long cell  x\nbcd  y\n"
