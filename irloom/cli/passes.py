"""``irloom passes`` and ``irloom pass``: the passes there are, their order, and the page of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, fields
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, print_json, print_table, several_targets

if TYPE_CHECKING:
    from .. import Pass
    from ..driver import Choice

ORDER = ("after", "before", "requires", "preserves", "targets")


@command("passes")
@several_targets()
@json_option
@click.pass_context
def passes(ctx: click.Context, passes: tuple[Choice, ...], as_json: bool) -> None:
    """List the passes, and their order for each target.

    Beside a pass that is not of the target's own pipeline stands what holds it in its place. The exit code is
    1 when a target's pipeline has no order.

    \b
    irloom passes --target cpu --with "quantize(int4)"
    irloom passes --plugin quiet.py
    """
    from ..passes import PASSES

    pages = [_page(name, PASSES[name]) for name in sorted(PASSES)]
    orders = {choice.target: _order(choice) for choice in passes}
    unknown = _unknown(pages)
    if as_json:
        print_json({"passes": pages, "targets": orders, "unknown": unknown, "left_out": _left_out()})
    else:
        print_table([(p["name"], p["doc"].partition("\n")[0], _from(p)) for p in pages])
        for target, order in orders.items():
            click.echo(f"\n{target}")
            _print_order(order)
        for said in unknown:
            click.echo(f"\nnote: {said}")
    if any("error" in order for order in orders.values()):
        ctx.exit(1)


@command("pass")
@click.argument("name")
@json_option
def pass_(name: str, as_json: bool) -> None:
    """Print the page of one pass: options, place in a pipeline."""
    from ..passes import PASSES

    page = _page(name, PASSES[name])
    print_json(page) if as_json else _print(page)


def _page(name: str, cls: type[Pass]) -> dict[str, Any]:
    from ..ir.plugins import origin
    from ..passes import page

    return {
        "name": name,
        "doc": page(name),
        "options": {f.name: _option(f) for f in fields(cls)},
        **{word: list(getattr(cls, word)) for word in ORDER},
        "from": asdict(origin(cls)),
    }


def _from(page: dict[str, Any]) -> str:
    """The package that brings a pass, or its file where it was given as one."""
    package, version, file = page["from"].values()
    return file if package is None else package if package == "irloom" else f"{package} {version}"


def _order(choice: Choice) -> dict[str, Any]:
    """The passes of a target in order, and why each stands there that the target itself does not name.

    A target that there is not is an error; an order that there is not is told.
    """
    from ..driver import own_passes, passes_of
    from ..ir.errors import IrloomError
    from ..passes import name_of, reasons, spell

    own = {name_of(type(p)) for p in own_passes(choice.target)}
    try:
        order = passes_of(choice)
    except IrloomError as error:
        return {"error": error.message, "hint": error.hint}
    names = [name_of(type(p)) for p in order]
    why = {name: [str(c) for c in reasons(name, order)] for name in names if name not in own}
    return {
        "order": [
            {"pass": name, "text": spell(p), "own": name in own, "because": why.get(name, [])}
            for name, p in zip(names, order, strict=True)
        ]
    }


def _print_order(order: dict[str, Any]) -> None:
    if "error" in order:
        click.echo(f"  {order['error']}\n  hint: {order['hint']}")
        return
    rows: Sequence[dict[str, Any]] = order["order"]
    said = ["" if r["own"] else ", ".join(r["because"]) or "it says nothing of its order" for r in rows]
    print_table([(f"{i:4}", r["text"], why) for i, (r, why) in enumerate(zip(rows, said, strict=True), 1)])


def _unknown(pages: Sequence[dict[str, Any]]) -> list[str]:
    """What passes say of passes and targets that are not installed: often a name that is misspelt."""
    from difflib import get_close_matches

    from ..backends.core import backends

    names, out = [p["name"] for p in pages], list[str]()
    for p in (p for p in pages if p["from"]["package"] != "irloom"):
        for word in ORDER:
            known = backends() if word == "targets" else [*names, "*", *(f"-{name}" for name in names)]
            for other in (o for o in p[word] if o not in known):
                near = get_close_matches(other, known, 1)
                ask = f"; did you mean {near[0]!r}?" if near else ""
                out.append(f"{p['name']} says {word} {other!r}, which is not installed{ask}")
    return out


def _left_out() -> dict[str, str]:
    """Passes of packages that do not load, and why."""
    from ..passes import PASSES

    return {name: failure.message for name, failure in PASSES.packages.broken().items()}


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
    click.echo(f"\nfrom {_from(page)}")
    if page["from"]["package"] is not None:
        click.echo(f"defined in {page['from']['file']}")
