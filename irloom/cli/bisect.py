"""``irloom bisect``: the first wrong pass, its first wrong rewrite, the smallest program that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, pipeline_options, print_json, trust_option
from .progress import progress_bars
from .verify import how, how_options

if TYPE_CHECKING:
    from ..bisect import Found
    from ..driver import Choice


@command("bisect")
@click.argument("model")
@how_options
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the reproducer goes."
)
@pipeline_options
@trust_option
@json_option
@click.pass_context
def bisect(
    ctx: click.Context, model: str, out: Path | None, passes: Choice, as_json: bool, **options: Any
) -> None:
    """Find the first wrong pass, and its first wrong rewrite.

    The program is then cut down to the smallest that still shows it, and written to a file that `irloom
    verify FILE` runs again. A pass that raises or leaves a malformed program is found in the same way. The
    exit code is 1 when something is wrong, 0 when every pass is right.

    \b
    irloom bisect MODEL --random --layers 2
    irloom bisect MODEL --plugin my_pass.py --with my-pass
    """
    from ..bisect import bisect as bisected

    with progress_bars() as report:
        found = bisected(model, passes, how(options), out, report)
    if as_json:
        print_json(_json(found))
    elif found is None:
        click.echo("every pass is right")
    else:
        _show(found)
    if found is not None:
        ctx.exit(1)


def _show(found: Found) -> None:
    culprit, reduced = found.culprit, found.reduced
    click.echo(f"pass     {culprit.name}")
    which = f"  (change {culprit.change} of {culprit.changes})" if culprit.change else ""
    click.echo(f"rewrite  {culprit.place}{which}")
    click.echo(f"failure  {culprit.failure}")
    if reduced:
        click.echo(
            f"reduced  to {reduced.statements} of {reduced.whole} statements: {reduced.found.failure}\n"
        )
        click.echo(found.diff())
    click.echo(f"\nirloom verify {found.file}")


def _json(found: Found | None) -> dict[str, Any]:
    if found is None:
        return {"ok": True}
    culprit, reduced = found.culprit, found.reduced
    return {
        "ok": False,
        "pass": culprit.name,
        "rewrite": culprit.place,
        "change": culprit.change,
        "changes": culprit.changes,
        "failure": str(culprit.failure),
        "statements": reduced and reduced.statements,
        "before": reduced and str(reduced.module),
        "after": str(reduced.found.module) if reduced and reduced.found.module else None,
        "reproducer": str(found.file),
    }
