"""``irloom passes`` and ``irloom pass``: the passes there are, and the page of one."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, print_json, print_table

if TYPE_CHECKING:
    from .. import Pass

ORDER = ("after", "before", "requires", "preserves")


@command("passes")
@json_option
def passes(as_json: bool) -> None:
    """List the passes: name, what it does, where it comes from."""
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
    """Print the page of one pass: options, place in a pipeline."""
    from ..passes import PASSES

    page = _page(name, PASSES[name])
    print_json(page) if as_json else _print(page)


def _page(name: str, cls: type[Pass]) -> dict[str, Any]:
    from ..passes import page

    return {
        "name": name,
        "doc": page(name),
        "options": {f.name: _option(f) for f in fields(cls)},
        **{word: list(getattr(cls, word)) for word in ORDER},
        "from": _origin(cls),
    }


def _origin(cls: type[Pass]) -> str:
    """The package that brings a pass, or its file where it was given as one."""
    package = cls.__module__.partition(".")[0]
    return inspect.getfile(cls) if package.startswith("irloom_plugin_") else package


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
    order = [(f"  {word}", ", ".join(page[word])) for word in ORDER if page[word] not in ([], ["*"])]
    if order:
        click.echo("\nin a pipeline")
        print_table(order)
    click.echo(f"\nfrom {page['from']}")
