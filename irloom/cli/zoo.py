"""``irloom zoo``: every architecture that transformers knows, column by column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .core import command, json_option, print_json, print_table

if TYPE_CHECKING:
    from ..zoo import KernelRow, NetworkRow, Row
    from ..zoo.told import Broken


@command("zoo")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--raised", is_flag=True, help="Show the share of FLOPs in model ops, and what almost matched.")
@click.option("--target", metavar="NAME", help="Say what becomes of each op on NAME: cuda, tensorrt, onnx.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--limit", type=float, default=180.0, show_default=True, help="Seconds until one is given up.")
@click.option(
    "--docs", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the page to FILE."
)
@click.option(
    "--since",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Say what no longer passes of the page FILE, such as docs/models.md; 1 is the exit code if any.",
)
@json_option
def zoo(
    names: tuple[str, ...],
    raised: bool,
    target: str | None,
    jobs: int,
    limit: float,
    docs: Path | None,
    since: Path | None,
    as_json: bool,
) -> None:
    """Take a tiny model of each architecture through irloom.

    Every one that transformers knows, or NAME.

    ``--raised`` counts FLOPs of the tiny model, where arithmetic weighs far more against products than it
    does in practice; where model ops do less than 99 %, also those of the model in its default sizes.

    \b
    irloom zoo --jobs 2 --docs docs/models.md
    irloom zoo llama mamba2 --raised
    irloom zoo --jobs 2 --since docs/models.md      # after an update of transformers
    irloom zoo --target cuda --docs docs/cuda_models.md
    """
    from ..zoo import failing, sweep
    from ..zoo import names as known

    unknown = sorted(set(names) - set(known()))
    if unknown:
        raise click.BadParameter(
            f"transformers has no causal language model {unknown[0]!r}", param_hint="NAME"
        )
    if target is not None:
        if raised or since is not None:
            raise click.UsageError("--target says nothing of --raised or --since")
        _lowered(target, names or tuple(known()), jobs, limit, docs, as_json)
        return
    columns = ("raised",) if raised else None
    say = (lambda row: None) if as_json else _say_raised if raised else _say
    rows = sweep(names or known(), jobs, limit, columns, say)
    broken = None if since is None else _broken(rows, since)
    if docs is not None:
        from importlib.metadata import version

        from ..zoo import page

        former = docs.read_text(encoding="utf-8") if docs.exists() else ""
        docs.write_text(page(rows, version("transformers"), former), encoding="utf-8")
    if as_json:
        from ..zoo import totals

        print_json({"architectures": [row.to_json() for row in rows], "totals": totals(rows)})
    else:
        _end(rows, raised)
        _say_failing(failing(rows) if broken is None else broken, since)
    if broken:
        raise click.exceptions.Exit(1)


def _lowered(
    target: str, names: tuple[str, ...], jobs: int, limit: float, docs: Path | None, as_json: bool
) -> None:
    """Every architecture as what a target makes of it: networks of a library's layers, or kernels."""
    from functools import partial
    from importlib.metadata import version

    from .. import zoo
    from ..backends.core import KernelBackend, backend

    say: Callable[[NetworkRow | KernelRow], None] = (lambda row: None) if as_json else _say_lowered
    about = target, version("transformers"), str(docs)
    if isinstance(backend(target), KernelBackend):
        work = partial(zoo.as_kernels, target)
        rows = zoo.sweep(names, jobs, limit, report=say, work=work, kind=zoo.KernelRow)
        counts, page = zoo.kernel_verdicts(rows), zoo.kernel_page(rows, *about)
    else:
        zoo.check_target(target)
        work = partial(zoo.as_networks, target)
        rows = zoo.sweep(names, jobs, limit, report=say, work=work, kind=zoo.NetworkRow)
        counts, page = zoo.verdicts(rows), zoo.network_page(rows, *about)
    if docs is not None:
        docs.write_text(page, encoding="utf-8")
    if as_json:
        print_json({"architectures": [row.to_json() for row in rows], "totals": counts})
    else:
        click.echo()
        print_table([tuple(counts), tuple(map(str, counts.values()))])


def _say_lowered(row: NetworkRow | KernelRow) -> None:
    click.echo(f"{row.name:28} {row.seconds:6.1f} s  {row.verdict}{f': {row.said}' if row.said else ''}")


def _broken(rows: list[Row], since: Path) -> Broken:
    from importlib.metadata import version

    from ..zoo import Told, failing

    return failing(rows, Told.read(since.read_text(encoding="utf-8")).promised(version("transformers")))


def _say_failing(broken: Broken, since: Path | None) -> None:
    """What went wrong, once each, with the blocks and lines where it did."""
    if since is not None:
        click.echo(f"\nof what passes in {since}, {'this does not:' if broken else 'nothing is lost'}")
    for (column, message), found in broken.items():
        click.echo(f"\n{column}: {message}")
        for name, place in found:
            click.echo(f"    {name:24} {place}".rstrip())


def _say(row: Row) -> None:
    """A line per architecture, as soon as it is done."""
    from ..zoo import COLUMNS

    failed = next((c for c in COLUMNS if getattr(row, c) is not True), None)
    said = "passes" if failed is None else f"{failed}: {getattr(row, failed)}"
    click.echo(f"{row.name:28} {row.seconds:6.1f} s  {said}")


def _say_raised(row: Row) -> None:
    share = row.flops_in_model_ops
    full = "" if row.flops_at_full_size is None else f"({row.flops_at_full_size:.1%} at full size)  "
    click.echo(f"{row.name:28} {'' if share is None else format(share, '.1%'):>6}  {full}{_ops(row)}")
    for miss in row.near_misses:
        click.echo(f"{'':36} almost: {miss}")


def _ops(row: Row) -> str:
    if row.flops_in_model_ops is None:
        return str(row.traced if row.built is True else row.built)
    return f"{', '.join(row.model_ops)}; left: {', '.join(row.tensor_ops)}"


def _end(rows: list[Row], raised: bool) -> None:
    from statistics import median

    from ..zoo import COLUMNS, totals

    counts = totals(rows)
    click.echo()
    if raised:
        shares = [r.flops_in_model_ops for r in rows if r.flops_in_model_ops is not None]
        if shares:
            click.echo(
                f"share of FLOPs in model ops: {min(shares):.1%} at least, {median(shares):.1%} median"
            )
        return
    print_table([(*COLUMNS, "all", "of"), tuple(str(counts[c]) for c in (*COLUMNS, "all", "of"))])
