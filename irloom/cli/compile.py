"""``irloom compile``: build an engine directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .core import (
    adapter_option,
    command,
    json_option,
    pipeline_options,
    print_json,
    trust_option,
)
from .progress import progress_bars

if TYPE_CHECKING:
    from ..driver import Choice


@command("compile")
@click.argument("model")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to put it."
)
@pipeline_options
@adapter_option
@trust_option
@click.option(
    "--no-split", is_flag=True, help="Refuse a model with an op that the target has no kernel or layer for."
)
@click.option(
    "--cut",
    type=click.Choice(["whole", "layer"]),
    help="Where the target builds networks: one of all, or one a layer. Default: what is less to build.",
)
@json_option
def compile_(
    model: str,
    out: Path,
    passes: Choice,
    adapter: str | None,
    trust: bool,
    no_split: bool,
    cut: str | None,
    as_json: bool,
) -> None:
    """Build an engine: a directory that `irloom run` opens in seconds.

    Batch size, sequence length and page count are chosen when it runs, not here. A build that is stopped
    half-way leaves nothing behind that opens.
    """
    from .. import driver

    passes = passes.here()
    with progress_bars() as report:
        driver.compile(
            model,
            target=passes.target,
            pipeline=driver.passes_of(passes),
            out=out,
            adapter=adapter,
            progress=report,
            trust_remote_code=trust,
            split=not no_split,
            cut=cut,
        )
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    if as_json:
        print_json({"engine": str(out), "target": passes.target, "bytes": size})
    else:
        click.echo(f"{out}: {size / 1e6:,.1f} MB for {passes.target}; run it with `irloom run {out}`")
