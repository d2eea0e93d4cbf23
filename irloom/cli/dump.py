"""``irloom dump``: a model as IR text, at any point of its pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipeline_options, print_json, trust_option
from .why import print_why, why_option

if TYPE_CHECKING:
    from .. import Module
    from ..driver import Choice


@command("dump")
@click.argument("model")
@click.option(
    "--after", metavar="PASS", help="Stop after this pass; `trace` shows the model as it was traced."
)
@click.option("--layer", type=int, metavar="N", help="Print only the function that layer N calls.")
@click.option("--lowered", is_flag=True, help="Print the program that the target runs.")
@why_option
@pipeline_options
@trust_option
@json_option
def dump(
    model: str,
    after: str | None,
    layer: int | None,
    lowered: bool,
    why: str | None,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Print MODEL as IR text.

    The program is traced, then rewritten by the target's pipeline or by the one given.

    \b
    irloom dump Qwen/Qwen3-0.6B --after outline
    irloom dump gemma-3-270m.gguf --layer 0 --lowered
    """
    from .. import driver

    if why is not None:
        print_why(driver.record_of(model, passes, after, trust_remote_code=trust)[2], why, as_json)
        return
    m = driver.rewritten(model, passes, after, trust_remote_code=trust)
    text = driver.lowered(m, passes.target) if lowered else str(m) if layer is None else _layer(m, layer)
    if as_json:
        print_json({"model": m.model, "passes": m.passes, "functions": list(m.funcs), "text": text})
    else:
        click.echo(text.rstrip("\n"))


def _layer(m: Module, n: int) -> str:
    """The function that ``main`` calls with layer index ``n``, as text."""
    from ..ir.errors import IRError
    from ..ir.show import show_func

    layers = {index: call.callee for call, index, _ in m.calls() if index is not None}
    if n not in layers:
        has = (
            f"it has layers {min(layers)} to {max(layers)}" if layers else "its layers are not outlined here"
        )
        raise IRError(f"{m.model or 'the program'}: no layer {n}", hint=has)
    return show_func(m.funcs[layers[n]])
