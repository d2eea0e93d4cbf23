"""``irloom dump``: a model as IR text, at any point of its pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipeline_option, print_json, target_option

if TYPE_CHECKING:
    from .. import Module


@command("dump")
@click.argument("model")
@click.option(
    "--after", metavar="PASS", help="Stop after this pass; `trace` shows the model as it was traced."
)
@click.option("--layer", type=int, metavar="N", help="Print only the function that layer N calls.")
@click.option("--lowered", is_flag=True, help="Print the program that the target runs.")
@target_option
@pipeline_option
@json_option
def dump(
    model: str,
    after: str | None,
    layer: int | None,
    lowered: bool,
    target: str,
    pipeline: str | None,
    as_json: bool,
) -> None:
    """Print MODEL as IR text: traced, and rewritten by the target's pipeline or the one given.

    \b
    irloom dump Qwen/Qwen3-0.6B --after outline
    irloom dump gemma-3-270m.gguf --layer 0 --lowered
    """
    from .. import driver

    m = driver.rewritten(model, target=target, pipeline=pipeline, after=after)
    text = driver.lowered(m, target) if lowered else _text(m, layer)
    if as_json:
        print_json({"model": m.source, "passes": m.passes, "functions": sorted(m.funcs), "text": text})
    else:
        click.echo(text)


def _text(m: Module, layer: int | None) -> str:
    from .. import show

    return show(m)
