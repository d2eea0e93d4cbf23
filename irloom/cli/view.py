"""``irloom view``: a model and what passes made of it, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .core import command, json_option, pipeline_options, print_json, trust_option

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
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@pipeline_options
@trust_option
@json_option
def view(
    model: str,
    out: Path | None,
    device: str | None,
    context: int,
    seqs: int,
    dtype: str | None,
    show: bool,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Write a page that shows MODEL pass by pass.

    One HTML file that needs no network: layers that open and close, before and after of each pass side by
    side, colours by cost, search. Weights are not read; a directory with a config.json is enough.

    \b
    irloom view gemma-3-270m.gguf -o gemma.html --device cpu
    irloom view Qwen/Qwen3-0.6B --with fold-scales --device h200 --dtype bf16 --open
    """
    from ..backends.machine import device as named
    from ..viewer import Settings, document, render, write
    from ..viewer.model import recorded

    settings = Settings(context, seqs, named(device) if device else None)
    data = document(recorded(model, passes, dtype, trust), settings)
    if as_json:
        print_json(data)
        return
    out = out or Path(f"{_file_name(data['model'])}.html")
    text = render(data)
    write(text, out)
    click.echo(f"{out}: {len(text.encode()) / 1e6:.1f} MB, {len(data['steps'])} passes")
    if show:
        click.launch(str(out))


def _file_name(model: str) -> str:
    import re

    return re.sub(r"[^\w.-]+", "_", Path(model).name).strip(".") or "model"
