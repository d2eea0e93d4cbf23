"""``irloom dump``: a model at any point of its pipeline, as IR text or for other tools to show."""

from __future__ import annotations

import ast
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipeline_options, print_json, trust_option
from .why import print_why, why_option

if TYPE_CHECKING:
    from .. import Module
    from ..driver import Choice
    from ..passes import Record

FORMATS = ("text", "json", "dot", "onnx", "model-explorer")


@command("dump")
@click.argument("model")
@click.option(
    "--after",
    metavar="STAGE",
    help="Stop after this pass, canonicalize:1 for its first run, 3 for the third; `trace` is before all.",
)
@click.option("--layer", type=int, metavar="N", help="Only the function that layer N calls.")
@click.option("--function", metavar="NAME", help="Only this function.")
@click.option("--lowered", is_flag=True, help="The program that the target runs.")
@click.option("--format", "to", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@why_option
@pipeline_options
@trust_option
@json_option
def dump(
    model: str,
    after: str | None,
    layer: int | None,
    function: str | None,
    lowered: bool,
    to: str,
    out: Path | None,
    why: str | None,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Print MODEL as IR text, or as a graph.

    The program is traced, then rewritten by the target's pipeline or by the one given.

    --format dot is for Graphviz, onnx for Netron, model-explorer for Model Explorer; json has vertices,
    edges, types and where each comes from (its schema: irloom/export/json_graph.py).

    \b
    irloom dump Qwen/Qwen3-0.6B --after outline
    irloom dump gemma-3-270m.gguf --layer 0 --lowered
    irloom dump Qwen/Qwen3-0.6B --layer 0 --format dot | dot -Tsvg -o layer.svg
    irloom dump Qwen/Qwen3-0.6B --format onnx -o qwen.onnx
    """
    from .. import driver

    if to != "text" and (lowered or as_json):
        raise click.UsageError(f"--format {to} is a graph: leave --lowered and --json out")
    if why is not None:
        print_why(driver.record_of(model, passes, after, trust_remote_code=trust)[2], why, as_json)
        return
    m, record = driver.staged(model, passes, after, trust_remote_code=trust)
    _say_misses(record)
    name = _chosen(m, layer, function)
    if to != "text":
        from ..export import export

        _give(export(m, to, None if name is None else [name]), out)
        return
    text = _lowered(driver.lowered(m, passes.target), name) if lowered else _text(m, name)
    if as_json:
        print_json({"model": m.model, "passes": m.passes, "functions": list(m.funcs), "text": text})
    else:
        _give(text.rstrip("\n") + "\n", out)


def _give(data: str | bytes, out: Path | None) -> None:
    """Print, or write to a file that is whole or is not there."""
    if out is None:
        if isinstance(data, bytes) and sys.stdout.isatty():
            raise click.UsageError("this format is binary: give -o FILE")
        click.echo(data, nl=False)
        return
    from ..ir.files import write_whole

    write_whole(out, data)


def _say_misses(record: Record) -> None:
    """Passes that changed nothing, though almost: on stderr, where it does not end up in the program."""
    done = {s.name for s in record.steps if s.changes.places}
    for s in record.steps:
        near = len(s.changes.near_misses)
        if near and s.name not in done:
            count = f"{near} near miss{'es' if near > 1 else ''}"
            click.echo(f"{s.name} changed nothing, {count}: --why {s.name} shows them", err=True)


def _chosen(m: Module, layer: int | None, function: str | None) -> str | None:
    """The one function to show, if only one is."""
    from ..ir.errors import IRError

    if layer is not None and function is not None:
        raise click.UsageError("--layer names a function, too: leave one of --layer and --function out")
    if function is not None and function not in m.funcs:
        near = get_close_matches(function, m.funcs, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(m.funcs)}"
        raise IRError(f"{m.model or 'the program'}: no function {function!r}", hint=hint)
    if layer is None:
        return function
    layers = {index: call.callee for call, index, _ in m.calls() if index is not None}
    if layer not in layers:
        has = (
            f"it has layers {min(layers)} to {max(layers)}" if layers else "its layers are not outlined here"
        )
        raise IRError(f"{m.model or 'the program'}: no layer {layer}", hint=has)
    return layers[layer]


def _text(m: Module, name: str | None) -> str:
    from ..ir.show import show, show_func

    return show(m) if name is None else show_func(m.funcs[name])


def _lowered(text: str, name: str | None) -> str:
    """A lowered program, or the one function of it, as it stands there."""
    if name is None:
        return text
    for s in ast.parse(text).body:
        if isinstance(s, ast.FunctionDef) and s.name == name:
            return "\n".join(text.splitlines()[s.lineno - 1 : s.end_lineno])
    raise click.UsageError(f"the lowered program has no function of its own for {name}")
