"""``irloom view``: a model and what passes made of it, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipeline_options, print_json, trust_option
from .progress import progress_bars

if TYPE_CHECKING:
    from ..driver import Choice


@command("view")
@click.argument("model")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.html",
    help="Where to write the page; default: the model's name, here.",
)
@click.option("--device", metavar="NAME", help="Predict times on this device, such as h200, or cpu.")
@click.option("--context", type=click.IntRange(min=1), default=1024, show_default=True, help="In tokens.")
@click.option("--seqs", type=click.IntRange(min=1), default=1, show_default=True, help="Decoded together.")
@click.option("--dtype", help="Of weights and caches, such as bf16; default: what the target computes in.")
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Only the first N layers.")
@click.option("--verify", "check", is_flag=True, help="Run every pass before and after; colour by error.")
@click.option("--random", is_flag=True, help="Verify with seeded random weights, not the model's.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@pipeline_options
@trust_option
@json_option
@click.pass_context
def view(
    ctx: click.Context,
    model: str,
    out: Path | None,
    device: str | None,
    context: int,
    seqs: int,
    dtype: str | None,
    layers: int | None,
    check: bool,
    random: bool,
    show: bool,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Write a page that shows MODEL pass by pass.

    One HTML file that needs no network: layers that open and close, before and after of each pass side by
    side, colours by cost, search. Weights are not read, so a directory with a config.json is enough, unless
    numbers are to be verified; the exit code is 1 when a pass moves them too far or raises.

    \b
    irloom view gemma-3-270m.gguf -o gemma.html --device cpu
    irloom view Qwen/Qwen3-0.6B --with "quantize(int8)" --device h200 --dtype bf16 --open
    irloom view llama-3.1-8b/ --verify --random --layers 2
    """
    from ..backends.machine import device as named
    from ..ir.files import write_whole
    from ..verify import How
    from ..viewer import Settings, document, render
    from ..viewer.model import recorded, verified

    settings = Settings(context, seqs, named(device) if device else None)
    how = How(layers=layers, random=random, dtype=dtype, trust=trust)
    with progress_bars() as report:
        shown = verified(model, passes, how, report) if check else recorded(model, passes, how)
    data = document(shown.what, settings, shown.errors)
    if as_json:
        print_json(data)
    else:
        out = out or Path(f"{_file_name(data['model'])}.html")
        text = render(data)
        write_whole(out, text)
        click.echo(f"{out}: {len(text.encode()) / 1e6:.1f} MB, {len(data['steps'])} passes")
    for name, why in shown.wrong.items():
        click.echo(f"{name}: {why}", err=True)
    if show and out is not None:
        click.launch(str(out))
    if shown.wrong:
        ctx.exit(1)


def _file_name(model: str) -> str:
    import re

    return re.sub(r"[^\w.-]+", "_", Path(model).name).strip(".") or "model"
