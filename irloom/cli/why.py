"""``--why PASS``: where a pass did not fire, and what stopped it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .core import print_json

if TYPE_CHECKING:
    from ..passes import Record

why_option = click.option(
    "--why", metavar="PASS", help="Instead, say where PASS did not fire, how far it got and what stopped it."
)


def print_why(record: Record, name: str, as_json: bool) -> None:
    """The places where the pass called ``name`` changed nothing, the closest first."""
    from ..passes.why import reasons, why

    if as_json:
        print_json([each.to_json() for each in reasons(record, name)])
    else:
        click.echo(why(record, name))
