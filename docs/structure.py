"""Write the list of modules in ``docs/structure.md``: the first sentence of each module's docstring.

``python docs/structure.py`` rewrites what is between the two marks; ``--check`` says whether it would change.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "structure.md"
BEGIN, END = "<!-- modules: make docs -->\n", "<!-- /modules -->\n"


def main() -> int:
    """Rewrite the page, or with ``--check`` return 1 where it is out of date."""
    old = PAGE.read_text()
    new = rewritten(old)
    if "--check" in sys.argv:
        return int(old != new)
    PAGE.write_text(new)
    return 0


def rewritten(page: str) -> str:
    """The page with its table made anew from the sources."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def table() -> str:
    """A heading per folder, a line per module, in the order of their paths; a door speaks for its folder."""
    lines: list[str] = []
    folder = None
    for path in modules():
        if path.parent != folder:
            folder = path.parent
            lines.append(f"\n#### `{folder.relative_to(ROOT)}/`\n\n")
        lines.append(f"- `{path.name}`: {sentence(path)}\n")
    return "".join(lines) + "\n"


def modules() -> list[Path]:
    """Every module of irloom, folder by folder, the door of each folder first."""
    found = (ROOT / "irloom").rglob("*.py")
    return sorted(found, key=lambda p: (p.parent, p.name != "__init__.py", p.name))


def sentence(module: Path) -> str:
    """First line of the module's docstring, or an empty string where there is none."""
    doc = ast.get_docstring(ast.parse(module.read_text())) or ""
    return doc.partition("\n")[0].replace("``", "`")


if __name__ == "__main__":
    sys.exit(main())
