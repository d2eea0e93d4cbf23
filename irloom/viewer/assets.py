"""The files a page is made of: irloom's own under ``static/``, libraries under ``vendor/`` with their hashes.

``vendor/lock.json`` says for each library file which package and version it comes from, under which licence,
and its sha256. ``make vendor`` renews them from npm.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).parent
LIBRARIES = ("cytoscape.min.js", "elk-api.js")
WORKER = "elk-worker.min.js"
SCRIPTS = (
    "program", "scene", "fold", "shown", "layout", "measures", "colours", "labels", "sheet", "pane", "search",
    "address", "elements", "details", "overview", "outline", "timeline", "export", "store", "draw", "actions",
    "app", "keys",
)  # fmt: skip
STYLES = ("page", "graph", "outline", "details")


class Locked(TypedDict):
    """Where a vendored file comes from; paths are those inside of the npm package."""

    package: str
    version: str
    path: str
    source: str
    licence: str
    licence_path: str
    licence_file: str
    sha256: str


def lock() -> dict[str, Locked]:
    """What ``vendor/lock.json`` says of each vendored file."""
    return json.loads((ROOT / "vendor" / "lock.json").read_text("utf-8"))


def sha256(file: Path) -> str:
    """The digest of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def vendored(name: str) -> str:
    """A library file, as it was published."""
    return (ROOT / "vendor" / name).read_text("utf-8")


def scripts() -> list[str]:
    """The page's own scripts, each after those it needs."""
    return [(ROOT / "static" / "js" / f"{name}.js").read_text("utf-8") for name in SCRIPTS]


def styles() -> list[str]:
    """The page's own style sheets."""
    return [(ROOT / "static" / "css" / f"{name}.css").read_text("utf-8") for name in STYLES]


def shell() -> str:
    """The page without its data, styles and scripts."""
    return (ROOT / "static" / "page.html").read_text("utf-8")
