"""``irloom passes`` and ``irloom pass``: the passes there are, and the page of one."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, print_json, print_table

if TYPE_CHECKING:
    from .. import Pass


@command("passes")
@json_option
def passes(as_json: bool) -> None:
    """List the passes: name, what it does, and the package or file it comes from."""
    from ..passes import PASSES

    pages = [_page(name, PASSES[name]) for name in sorted(PASSES)]
    if as_json:
        print_json(pages)
    else:
        print_table([(p["name"], p["doc"].partition("\n")[0], p["from"]) for p in pages])


@command("pass")
@click.argument("name")
@json_option
def pass_(name: str, as_json: bool) -> None:
    """Print the page of pass NAME: what it does, its options, its place in a pipeline."""
    from ..passes import PASSES

    page = _page(name, PASSES[name])
    print_json(page) if as_json else _print(page)


def _page(name: str, cls: type[Pass]) -> dict[str, Any]:
    module = inspect.getmodule(cls)
    return {
        "name": name,
        "doc": inspect.cleandoc(cls.__doc__ or "") or inspect.getdoc(module) or "",
        "options": {f.name: _option(f) for f in fields(cls)},
        **{order: list(getattr(cls, order)) for order in ("after", "before", "requires", "preserves")},
        "from": cls.__module__,
    }


def _option(f: Field[Any]) -> str:
    """Type and default, as in the dataclass: ``int = 64``."""
    kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
    if f.default is not MISSING:
        return f"{kind} = {f.default!r}"
    return f"{kind} = {f.default_factory()!r}" if f.default_factory is not MISSING else f"{kind}, required"


def _print(page: dict[str, Any]) -> None:
    click.echo(f"{page['name']}\n\n{page['doc']}")
    if page["options"]:
        click.echo("\noptions")
        print_table([(f"  {name}", text) for name, text in page["options"].items()])
    order = [
        (f"  {word}", ", ".join(page[word]))
        for word in ("after", "before", "requires", "preserves")
        if page[word]
    ]
    if order:
        click.echo("\nin a pipeline")
        print_table(order)
    click.echo(f"\nfrom {page['from']}")
