"""``irloom diff``: what differs between two programs, or what passes made of one, by structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipeline_options, print_json, trust_option

if TYPE_CHECKING:
    from .. import Module
    from ..driver import Choice
    from ..ir.diff import Change, Diff, FuncDiff
    from ..passes import Step

COLORS = {
    "added": "green",
    "removed": "red",
    "replaced": "yellow",
    "changed": "yellow",
    "retyped": "cyan",
    "moved": "blue",
}
SAME, DIFFERENT, TROUBLE = 0, 1, 2


@command("diff")
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--pass", "one", metavar="PASS", help="What this pass changes; canonicalize:1 is its first run."
)
@click.option("--from", "start", metavar="STAGE", help="From after this pass; default: `trace`, before all.")
@click.option("--to", "stop", metavar="STAGE", help="To after this pass; default: the last.")
@pipeline_options
@trust_option
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    a: str,
    b: str | None,
    one: str | None,
    start: str | None,
    stop: str | None,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Print how program B differs from A, or what passes make of A.

    A and B are IR texts, engines or models; of a model it is the program that the target compiles. Names of
    values, their numbers and the passes behind them make no difference. What is new says which pass made it.

    \b
    - removed  + added  ! changed, or another op in its place  ~ retyped  > moved

    The exit code is 0 when they are the same, 1 when they differ, 2 when something is wrong.

    \b
    irloom diff before.irloom after.irloom
    irloom diff Qwen/Qwen3-0.6B --pass fuse-mlp
    irloom diff Qwen/Qwen3-0.6B --from trace --to kv-cache
    """
    from ..ir.diff import diff as compared
    from ..ir.errors import IrloomError
    from ..passes.blame import blamed

    try:
        old, new, steps = _sides(a, b, one, start, stop, passes, trust)
        found = blamed(compared(old, new), steps)
    except IrloomError as error:
        click.echo(f"error: {error}", err=True)
        ctx.exit(TROUBLE)
    if as_json:
        print_json(found.to_json())
    else:
        for kind, line in lines(found):
            click.secho(line, fg=COLORS.get(kind), bold=kind == "head")
    ctx.exit(SAME if found.same else DIFFERENT)


def _sides(
    a: str, b: str | None, one: str | None, start: str | None, stop: str | None, passes: Choice, trust: bool
) -> tuple[Module, Module, list[Step]]:
    """The two programs, and the steps that lead from the first to the second where they are of one model."""
    from .. import driver

    if b is not None and (one or start):
        raise click.UsageError("--pass and --from are about one model: leave B out")
    if one and (start or stop):
        raise click.UsageError("--pass is from before it to after it: leave --from and --to out")
    if b is not None:
        return driver.program(a, passes, stop, trust), driver.program(b, passes, stop, trust), []
    chosen = driver.passes_of(passes)
    last = len(driver.until(chosen, one or stop))
    first = last - 1 if one else len(driver.until(chosen, start or "trace"))
    if one and not last:
        raise click.UsageError(f"--pass {one} is no pass")
    traced, _, record = driver.record_of(a, passes, str(max(first, last)), trust_remote_code=trust)
    stages = [*(s.before for s in record.steps), record.steps[-1].after] if record.steps else [traced]
    return stages[first], stages[last], record.steps[first:last]


def lines(d: Diff) -> Iterator[tuple[str, str]]:
    """A diff for people: lines, each with its kind of change, or ``head`` for a heading."""
    if d.header:
        yield "head", "header"
    for name, old, new in d.header:
        yield from [("removed", f"  - {name} = {old}")] if old else []
        yield from [("added", f"  + {name} = {new}")] if new else []
    for f in d.funcs:
        if not f.same:
            yield "head", _heading(f)
            yield from _moves(f)
            for c in f.changes:
                yield from _lines(c, f)
            if f.returns:
                yield "removed", f"  - return {f.returns[0]}"
                yield "changed", f"  ! return {f.returns[1]}"


def _heading(f: FuncDiff) -> str:
    from ..ir.diff import KINDS

    if f.old is None or f.new is None:
        there = f.new or f.old
        assert there is not None
        return f"{f.name}: {'a new function' if f.new else 'gone'}, {len(there.body)} statements"
    was = f", which was {f.old.name}" if f.renamed else ""
    counts = ", ".join(f"{len(f.of(kind))} {kind}" for kind in KINDS if f.of(kind))
    return f"{f.name}{was}: {counts}" if counts else f"{f.name}{was}"


def _moves(f: FuncDiff) -> Iterator[tuple[str, str]]:
    """What moved to or from other functions, counted: of outlined layers it is too much to list."""
    ways = Counter((c.old.func, c.new.func) for c in f.of("moved") if c.old and c.new)
    for (old, new), count in ways.items():
        if old != new:
            yield "moved", f"  > {count} moved from {old} to {new}"


def _lines(c: Change, f: FuncDiff) -> Iterator[tuple[str, str]]:
    made = f"  [{c.new.made_by}]" if c.new and c.new.made_by else ""
    gone = f"  [{c.removed_by}]" if c.removed_by else ""
    match c.kind, c.old, c.new:
        case "moved", old, new:
            if old and new and old.func == new.func:
                yield "moved", f"  > {new}"
        case "retyped", old, new:
            yield "retyped", f"  ~ {new}{made}"
            yield "retyped", f"    was {old}"
        case kind, old, new:
            if old:
                yield "removed", f"  - {old}{gone}"
            if new:
                yield kind, f"  {'!' if old else '+'} {new}{made}"
