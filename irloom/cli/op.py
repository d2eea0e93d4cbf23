"""``irloom op``: the ops there are, and the page of one."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, print_json, print_table

if TYPE_CHECKING:
    from ..ir.op import Op


@command("op")
@click.argument("name", required=False)
@json_option
def op(name: str | None, as_json: bool) -> None:
    """List the ops, or print the page of one."""
    from ..ir.op import OPS

    import_module("irloom.ir.ops")  # defines irloom's own
    if name is None:
        OPS.packages.every()

    if name is not None:
        page = _page(OPS[name])
        print_json(page) if as_json else _print(page)
        return
    pages = [_page(o) for o in sorted(OPS, key=lambda o: o.name)]
    if as_json:
        print_json(pages)
    else:
        print_table([(p["name"], p["signature"], p["doc"].partition("\n")[0] + _by(p)) for p in pages])


def _page(o: Op) -> dict[str, Any]:
    from ..ir.plugins import origin_of

    *ins, _ = o.signature.text.replace("->", ",").split(",")
    return {
        "name": o.name,
        "signature": o.signature.text,
        "operands": {name: dims.strip() for name, dims in zip(o.operands, ins, strict=False)},
        "attributes": {name: _attribute(o, name) for name in o.attrs},
        "doc": o.doc,
        "defined": o.place,
        **_kernel(o),
        "from": asdict(origin_of(o.place.rpartition(":")[0])),
    }


def _kernel(o: Op) -> dict[str, str]:
    """The head of the op's own C++ kernel; only where that was imported are there any."""
    extern = sys.modules.get("irloom.backends.cpu.extern")
    return {"kernel": extern.KERNELS[o.name].head.cpp} if extern and o.name in extern.KERNELS else {}


def _by(page: dict[str, Any]) -> str:
    """Who brings the op, where it is not irloom."""
    package, version, file = page["from"].values()
    return "" if package == "irloom" else f" ({file if package is None else f'{package} {version}'})"


def _attribute(o: Op, name: str) -> str:
    """Type and default, as in a Python signature: ``float = 1e-05``, or ``required``."""
    parameter = inspect.signature(o.reference).parameters.get(name)
    if parameter is None:  # a recurrent op: its body takes all attributes at once
        return f"{type(o.attrs[name]).__name__} = {o.attrs[name]!r}"
    return str(parameter).partition(name)[2].lstrip(":= ") or "required"


def _print(page: dict[str, Any]) -> None:
    click.echo(f'{page["name"]}   "{page["signature"]}"\n\n{page["doc"]}')
    for part in ("operands", "attributes"):
        if page[part]:
            click.echo(f"\n{part}")
            print_table([(f"  {name}", text) for name, text in page[part].items()])
    if "kernel" in page:
        click.echo(f"\nkernel for cpu\n  {page['kernel']}")
    click.echo(f"\ndefined in {page['defined']}{_by(page)}")
