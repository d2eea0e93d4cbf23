"""``irloom explain``: what irloom makes of a model, without its weights and without a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipelines_options, print_json, trust_option
from .why import print_why, why_option

if TYPE_CHECKING:
    from ..driver import Choice


@command("explain")
@click.argument("model")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="In tokens.  [default: 8192, or as many as MODEL is made for]",
)
@click.option(
    "--device",
    "devices",
    metavar="NAME",
    multiple=True,
    help="Predict steps on it: h200, rtx4090, ..., cpu, or h200(bandwidth=4.3TB, bf16=790T).",
)
@click.option(
    "--memory", metavar="SIZE", help="Say how many sequences fit beside the weights, such as 80GiB."
)
@click.option("--dtype", help="Of weights and caches, such as bf16; default: as stored.")
@why_option
@pipelines_options
@trust_option
@json_option
@click.pass_context
def explain(
    ctx: click.Context,
    model: str,
    context: int | None,
    devices: tuple[str, ...],
    memory: str | None,
    dtype: str | None,
    why: str | None,
    passes: tuple[Choice, ...],
    trust: bool,
    as_json: bool,
) -> None:
    """Say what traces, what falls back, what a step costs.

    MODEL needs no weights: a directory with a config.json is enough. Figures are those of the program that
    the first target compiles, so a pass more, such as quantize, shows in them. What a device is predicted to
    take is the roofline of its datasheet: each op as long as its bytes or its FLOPs take, one after another.
    The exit code is 1 when MODEL does not trace, or a target refuses it.

    \b
    irloom explain Qwen/Qwen3-0.6B --device h200 --device rtx4090
    irloom explain Qwen/Qwen3-0.6B --device l4 --with 'quantize(int4)'
    irloom explain deepseek-v3/ --memory 1.5TiB --context 32768 --json
    """
    if why is not None:
        from .. import driver

        print_why(driver.record_of(model, passes[0], trust_remote_code=trust)[2], why, as_json)
        return
    from ..explain import explain as explained
    from ..ir.plan import read_bytes

    size = read_bytes(memory) if memory else None
    found = explained(model, passes, context, size, dtype, trust, devices)
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(str(found))
    if not found.ok:
        ctx.exit(1)
