"""Installed packages for tests: the files that pip leaves, in a folder that is put on ``sys.path``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    offers: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
    requires: str = "",
) -> None:
    """Install a package of these files and entry points: ``{"irloom.passes": {"shout": "shout:Shout"}}``."""
    for file, text in files.items():
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(textwrap.dedent(text).lstrip())
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
    (info / "INSTALLER").write_text("pip\n")
    groups = (
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in offers.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))


def pass_file(name: str, facts: str = "", top: str = "") -> str:
    """A file of one pass, the class ``name``, that changes nothing; ``facts`` are lines of its class."""
    return (
        f"{top}\n"
        "from dataclasses import dataclass\n"
        "from irloom.passes import Changes, Pass\n\n"
        "@dataclass(frozen=True)\n"
        f"class {name}(Pass):\n"
        f'    """What {name} is for."""\n'
        f"    {facts}\n"
        "    def run(self, m):\n"
        "        return Changes()\n"
    )
