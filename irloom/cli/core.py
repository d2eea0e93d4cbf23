"""What every command shares: the group, ``--plugin`` and ``--json``, and how an error is shown.

A command's module imports nothing but click, so that ``irloom --help`` answers at once; what a command needs
is imported when it runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__

if TYPE_CHECKING:
    from .. import LLM
    from ..driver import Choice

Texts = tuple[str, ...]


class Exit(IntEnum):
    """What the shell is told: done, a mistake of the user's, a mistake of ours, stopped by Ctrl-C."""

    OK = 0
    USER = 1
    INTERNAL = 2
    INTERRUPTED = 130


class InOrder(click.Group):
    """A group whose help lists the commands as they were added, by what a newcomer reaches for first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with ``--debug`` an error's traceback comes before its message."""
        try:
            return super().invoke(ctx)
        except Exception as e:
            from ..ir.errors import IrloomError

            if ctx.params["debug"] and isinstance(e, IrloomError):
                traceback.print_exception(e)
            raise


def _load_plugin(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> None:
    """Load each once, wherever on the line it is given; of two of one name, neither is lost in silence."""
    loaded: dict[str, Path] = ctx.find_root().meta.setdefault("irloom.plugins", {})
    for path in paths:
        if path.resolve() in loaded.values():
            continue
        from ..passes import load_plugin

        if path.stem in loaded:
            both = f"{loaded[path.stem]} and {path.resolve()}"
            raise click.UsageError(f"--plugin: {both} have one name, and it is that of the pass")
        loaded[path.stem] = path.resolve()
        load_plugin(path)


_plugin = click.option(
    "--plugin",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    expose_value=False,
    is_eager=True,
    callback=_load_plugin,
    metavar="FILE.py",
    help="Load a file of one pass, ops and stand-ins for blocks, or a folder of such files; may repeat.",
)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="irloom %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback behind an error.")
@_plugin
def irloom(debug: bool) -> None:
    """Trace a language model into readable IR, rewrite it with passes, compile it, run it.

    MODEL is a hub id, a checkpoint directory, a .gguf, a .nemo or Megatron checkpoint, an IR text file or an
    engine directory.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``irloom``; never returns, and never shows a traceback for what a user can cause."""
    gc.set_threshold(50_000, 20, 100)  # modules and programs stay: looking through them is a tenth of a build
    sys.exit(_run(argv))


def _run(argv: Sequence[str] | None) -> Exit:
    try:
        with _warnings_in_a_line():
            ended: Any = irloom.main(argv, prog_name="irloom", standalone_mode=False)
        sys.stdout.flush()
        return Exit(ended or Exit.OK)  # what a command gave to `ctx.exit`, else None
    except click.ClickException as e:
        return _report(e.format_message(), _usage_hint(e))
    except click.Abort:  # Ctrl-C, or end of input where an answer was asked for
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader, say `head`, has seen enough; the interpreter must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.USER
    except Exception as e:
        from ..ir.errors import IrloomError

        if isinstance(e, IrloomError):
            return _report(str(e))
        return _report_internal(e)


@contextmanager
def _warnings_in_a_line() -> Generator[None]:
    """Show what irloom itself warns of, such as a plugin left out, as it shows errors."""
    with warnings.catch_warnings():
        former = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if category.__module__.startswith("irloom."):
                click.echo(f"warning: {message}", err=True)
            else:
                former(message, category, *rest, **more)

        warnings.showwarning = show
        warnings.filterwarnings("always", message="left out: ", category=UserWarning)
        yield


def _report(message: str, hint: str = "") -> Exit:
    click.echo("\n".join([f"error: {message}", *([f"hint: {hint}"] if hint else [])]), err=True)
    return Exit.USER


def _report_internal(e: Exception) -> Exit:
    traceback.print_exception(e)
    click.echo(f"internal error: {type(e).__name__}: {e}", err=True)
    click.echo(
        "hint: this is a mistake in irloom; report it with the lines above and `irloom doctor`", err=True
    )
    return Exit.INTERNAL


def _usage_hint(e: click.ClickException) -> str:
    ctx = e.ctx if isinstance(e, click.UsageError) else None
    return f"`{ctx.command_path} --help` shows what there is" if ctx else ""


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_pipeline = (
    click.option(
        "--pipeline",
        metavar="TEXT",
        help='The passes, such as "canonicalize, raise, outline" or "default, quiet".  [default: default]',
    ),
    click.option(
        "--with",
        "with_",
        metavar="PASS",
        multiple=True,
        help="One pass more, placed by what it says of its order; may be given again.",
    ),
    click.option("--without", metavar="PASS", multiple=True, help="One pass less; may be given again."),
)

trust_option = click.option(
    "--trust-remote-code", "trust", is_flag=True, help="Run the Python files that MODEL brings with it."
)
adapter_option = click.option(
    "--adapter", metavar="DIR", help="A LoRA adapter in PEFT format, merged into the weights."
)


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command named ``name`` that takes ``--plugin``; its docstring is its help."""

    def wrap(fn: Callable[..., None]) -> click.Command:
        return click.command(name)(_plugin(fn))

    return wrap


def pipeline_options(fn: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--target``, ``--pipeline``, ``--with`` and ``--without``.

    Its function gets them as one ``passes: Choice``, for ``driver.passes_of``.
    """

    @wraps(fn)
    def chosen(
        *args: Any, target: str, pipeline: str | None, with_: Texts, without: Texts, **options: Any
    ) -> None:
        from ..driver import Choice

        fn(*args, passes=Choice(target, pipeline, with_, without), **options)

    target = click.option("--target", default="cpu", show_default=True, help="What to compile for.")
    return _with_options(chosen, target, *_pipeline)


def pipelines_options(fn: Callable[..., None]) -> Callable[..., None]:
    """As ``pipeline_options``, where ``--target`` may be given again: ``passes: tuple[Choice, ...]``."""
    return several_targets("cpu")(fn)


def several_targets(*default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``pipelines_options`` with other targets by default; without any, with every target there is."""

    def wrap(fn: Callable[..., None]) -> Callable[..., None]:
        @wraps(fn)
        def chosen(
            *args: Any, targets: Texts, pipeline: str | None, with_: Texts, without: Texts, **options: Any
        ) -> None:
            from ..driver import Choice, loadable

            names = dict.fromkeys(targets or default or loadable())
            fn(*args, passes=tuple(Choice(t, pipeline, with_, without) for t in names), **options)

        said = f"May be given again.  [default: {', '.join(default) or 'every target'}]"
        return _with_options(
            chosen, click.option("--target", "targets", multiple=True, help=said), *_pipeline
        )

    return wrap


def open_llm(model: str, passes: Choice, **more: Any) -> LLM:
    """The model, compiled as chosen; an engine directory keeps its target where none is asked for."""
    from click.core import ParameterSource

    from .. import LLM
    from ..driver import passes_of

    source = click.get_current_context().get_parameter_source("target")
    here = passes.here()
    target = None if source is ParameterSource.DEFAULT else here.target
    return LLM(model, target=target, pipeline=None if passes.plain else passes_of(here), **more)


def _with_options(fn: Callable[..., None], *options: Callable[..., Any]) -> Callable[..., None]:
    for option in reversed(options):
        fn = option(fn)
    return fn


def print_json(value: Any) -> None:
    """The one JSON printer: indented, keys in the order given, text as it is."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], gap: str = "  ") -> None:
    """Columns as wide as their widest cell; the last one runs free."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [cell.ljust(w) for cell, w in zip(row[:-1], widths[:-1], strict=True)]
        click.echo(gap.join([*cells, row[-1]]).rstrip())
