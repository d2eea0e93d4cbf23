"""``irloom verify``: what each pass does to the numbers of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, pipeline_options, print_json, print_table, trust_option
from .progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..driver import Choice
    from ..passes.report import Report
    from ..passes.verified import Row, Verified

HEAD = ("pass", "changes", "max abs", "relative", "cosine", "KL", "top-1", "error", "allowed", "")


def how_options(fn: Callable[..., None]) -> Callable[..., None]:
    """Options that say on what to verify: weights, layers, device."""
    options = (
        click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Only the first N layers."),
        click.option("--device", default="cpu", show_default=True, help="Where to run: cpu, cuda."),
        click.option("--random", is_flag=True, help="Seeded random weights; a config.json is enough."),
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
            help="Of inputs and random weights.",
        ),
        click.option("--dtype", help="Of weights and activations, such as bf16; default: the target's."),
        click.option(
            "--tokens", type=click.IntRange(min=4), default=1024, show_default=True,
            help="Windows and pages up to this many tokens are crossed.",
        ),
        click.option("--memory", metavar="SIZE", help="Keep so much of the weights loaded, such as 8GiB."),
    )  # fmt: skip
    for option in reversed(options):
        fn = option(fn)
    return fn


@command("verify")
@click.argument("model")
@how_options
@click.option("--by-layer", is_flag=True, help="Also compare the hidden state behind each layer.")
@click.option("--engine", is_flag=True, help="Also compare the target's engine with the interpreter.")
@click.option("--any-version", is_flag=True, help="Run a reproducer of another irloom, too.")
@pipeline_options
@trust_option
@json_option
@click.pass_context
def verify(ctx: click.Context, model: str, passes: Choice, as_json: bool, **options: Any) -> None:
    """Compare the numbers before and after every pass.

    MODEL may also be a reproducer that `irloom bisect` wrote. The exit code is 1 when a pass raises, leaves
    a malformed program, or moves the numbers by more than rounding does; passes that are lossy by design have
    a budget.

    \b
    irloom verify google/gemma-3-270m
    irloom verify llama-3.1-8b/ --random --layers 2 --dtype bf16 --device cuda
    irloom verify MODEL --with "quantize(int8)" --by-layer
    """
    from ..bisect import rerun
    from ..driver import Choice
    from ..passes.reproducer import is_reproducer
    from ..verify import verify as verified
    from ..verify import verify_engine

    any_version, engine, file = options.pop("any_version"), options.pop("engine"), Path(model)
    given = how(options)
    if is_reproducer(file):
        if engine or passes != Choice():
            raise click.UsageError(f"{model} says which pipeline it is for: no other is run, and no engine")
        found = rerun(file, given, any_version)
    else:
        with progress_bars() as report:
            found = verified(model, passes, given, report)
            if engine and not any(row.error for row in found.rows):
                report("engine", 0, 1)
                found.rows.append(verify_engine(model, passes, given))
    if as_json:
        print_json({"model": model, "ok": found.ok, "session": found.session, "passes": _json(found)})
    else:
        show(found)
    if not found.ok:
        ctx.exit(1)


def how(options: dict[str, Any]) -> Any:
    """The options as the ``How`` that ``irloom.verify`` takes."""
    from ..ir.plan import read_bytes
    from ..verify import How

    memory = options.pop("memory")
    return How(memory=read_bytes(memory) if memory else None, **options)


def _json(found: Verified) -> list[dict[str, Any]]:
    return [row.to_json() for row in found.rows]


def show(found: Verified) -> None:
    """A table, then what went wrong."""
    click.echo(found.session)
    if found.missed:
        click.echo(f"not crossed: {', '.join(map(str, found.missed))} tokens (see --tokens)")
    print_table([HEAD, *(_cells(row) for row in found.rows)])
    for row in found.rows:
        if row.compared and row.compared.layers:
            click.echo(f"\n{row.text}, by layer")
            layers = [
                (name, *_numbers(r), "ok" if r.ok else "BAD") for name, r in row.compared.layers.items()
            ]
            print_table([("", *HEAD[2:]), *layers])
    for row in found.rows:
        if row.error:
            click.echo(f"\n{row.text}: {row.error}")
        elif not row.ok and row.compared:
            click.echo(f"\n{row.text}: {row.compared.report}")


def _cells(row: Row) -> tuple[str, ...]:
    if row.error:
        return (row.text, str(row.changes), *[""] * 7, "ERROR")
    if row.compared is None:
        return (row.text, str(row.changes), *["-"] * 7, "ok")
    word = "ok" if row.ok else "BAD"
    lost = row.compared.report.unstable
    note = f" ({lost} rows left out: rounding alone turns them)" if lost else ""
    return (row.text, str(row.changes), *_numbers(row.compared.report), word + note)


def _numbers(r: Report) -> tuple[str, ...]:
    kl, top1 = "" if r.kl is None else f"{r.kl:.1e}", "" if r.top1 is None else f"{r.top1:.1%}"
    measures = f"{r.max_abs:.2e}", f"{r.relative:.1e}", f"{r.cosine:.6f}", kl, top1
    return (*measures, f"{r.error:.1e}", f"{r.allowed:.1e}")
