"""``irloom compile``: build an engine directory."""

from __future__ import annotations

from pathlib import Path

import click

from .core import (
    adapter_option,
    command,
    json_option,
    pipeline_option,
    print_json,
    target_option,
    trust_option,
)
from .progress import progress_bars


@command("compile")
@click.argument("model")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to put it."
)
@target_option
@pipeline_option
@adapter_option
@trust_option
@json_option
def compile_(
    model: str,
    out: Path,
    target: str,
    pipeline: str | None,
    adapter: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Build an engine: a directory that `irloom run` opens in seconds.

    Batch size, sequence length and page count are chosen when it runs, not here. A build that is stopped
    half-way leaves nothing behind that opens.
    """
    import irloom

    with progress_bars() as report:
        irloom.compile(
            model,
            target=target,
            pipeline=pipeline,
            out=out,
            adapter=adapter,
            progress=report,
            trust_remote_code=trust,
        )
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    if as_json:
        print_json({"engine": str(out), "target": target, "bytes": size})
    else:
        click.echo(f"{out}: {size / 1e6:,.1f} MB for {target}; run it with `irloom run {out}`")
