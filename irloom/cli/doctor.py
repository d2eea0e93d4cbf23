"""``irloom doctor``: what this machine has, and what each target lacks."""

from __future__ import annotations

import platform
from typing import Any

import click

from .. import __version__
from .core import command, json_option, print_json, print_table

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@command("doctor")
@json_option
def doctor(as_json: bool) -> None:
    """Show what this machine has, and what each target lacks."""
    facts = examine()
    if as_json:
        print_json(facts)
        return
    print_table(
        [
            ("irloom", f"{facts['irloom']} on Python {facts['python']}, {facts['system']}"),
            ("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items())),
            ("processor", f"{facts['cpu']}, {facts['cores']} cores usable"),
            ("features", " ".join(facts["features"]) or "none that a kernel asks for"),
            ("memory", f"{facts['memory_bytes'] / 2**30:.1f} GiB, read at {facts['read_gb_per_s']:.1f} GB/s"),
            ("compiler", facts["compiler"] or "none"),
        ]
    )
    click.echo("\ntargets")
    print_table(
        [
            (f"  {name}", lacks or _ready(facts["with"].get(name, {})))
            for name, lacks in facts["targets"].items()
        ]
    )
    if facts["plugins"]:
        click.echo("\nplugins")
        print_table(
            [(f"  {p['package']} {p['version']}", p["offers"], p["wrong"] or "") for p in facts["plugins"]]
        )


def examine() -> dict[str, Any]:
    """Every fact that the page shows; ``targets`` maps each to what it lacks, or None, and ``with`` to what
    its engines depend on here.
    """
    from ..backends import machine
    from ..backends.core import backend
    from ..driver import targets

    cxx, lacks = machine.compiler(), targets()
    return {
        "irloom": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": machine.cpu_name(),
        "features": list(machine.cpu_features()),
        "cores": machine.cores(),
        "memory_bytes": machine.memory(),
        "read_gb_per_s": round(machine.read_bandwidth() / 1e9, 1),
        "compiler": f"{cxx.path}, {cxx.version}" if cxx else None,
        "targets": lacks,
        "with": {name: backend(name).fingerprint() for name, lack in lacks.items() if lack is None},
        "plugins": _plugins(),
    }


def _ready(depends: dict[str, str]) -> str:
    return ", ".join(["ready", *(f"{name} {what}" for name, what in depends.items())])


def _plugins() -> list[dict[str, str | None]]:
    """What installed packages offer, and what is wrong with it."""
    from ..backends import core as backends
    from ..frontends import core as frontends
    from ..ir.op import OPS
    from ..passes import PASSES

    groups = (PASSES.packages, OPS.packages, frontends.PLUGINS, backends.PLUGINS)
    return [
        {
            "package": offer.package,
            "version": offer.version,
            "offers": f"{group.noun} {name}",
            "wrong": failure.message if (failure := group.broken().get(name)) else None,
        }
        for group in groups
        for name, offers in group.offers().items()
        for offer in offers
    ]


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
