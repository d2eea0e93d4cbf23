"""One HTML file from a page's data: everything inside, nothing fetched, no text of a model run as markup.

Names, weights and messages come from files that nobody vouches for. They travel as JSON in which ``<``, ``>``
and ``&`` are escaped, so that no text can end its element; the scripts put them on the page as text, never as
markup. The page's policy forbids every connection, so that even a mistake could send nothing anywhere.
"""

from __future__ import annotations

import html
import json
from typing import Any

from . import assets
from .document import Document

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "worker-src blob:",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


def render(data: Document) -> str:
    """The page as text."""
    worker = _inert(assets.vendored(assets.WORKER))
    parts = {
        "title": html.escape(f"{data['model']} · irloom"),
        "policy": html.escape(POLICY),
        "notice": _notice(),
        "styles": "\n".join(f"<style>\n{text}</style>" for text in assets.styles()),
        "data": f'<script type="application/json" id="irloom-data">{to_json(data)}</script>',
        "worker": f'<script type="text/plain" id="irloom-worker">{worker}</script>',
        "libraries": "\n".join(_script(assets.vendored(name)) for name in assets.LIBRARIES),
        "scripts": "\n".join(_script(text) for text in assets.scripts()),
    }
    page = assets.shell()
    for name, text in parts.items():
        before, marker, after = page.partition(f"<!-- irloom: {name} -->")
        if not marker:
            raise ValueError(f"page.html has no place for {name}")
        page = before + text + after
    return page


def to_json(value: Any) -> str:
    """JSON that is safe between ``<script>`` and ``</script>``, and in a JavaScript string.

    >>> to_json(["</script><!--"])
    '["\\\\u003c/script\\\\u003e\\\\u003c!--"]'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for c in "<>&\u2028\u2029":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return text


def _script(text: str) -> str:
    return f"<script>\n{_inert(text)}\n</script>"


def _inert(code: str) -> str:
    """Code that holds nothing that an HTML parser would take for the end of its element."""
    for word in ("</script", "<!--", "<script"):
        if word in code.lower():
            raise ValueError(f"a script holds {word!r}: it cannot stand inside of a page")
    return code


def _notice() -> str:
    rows = [
        f"{name}: {x['package']} {x['version']}, {x['licence']}, {x['source']}"
        for name, x in assets.lock().items()
    ]
    return "<!--\nMade by irloom. Libraries in this file, unmodified:\n" + "\n".join(rows) + "\n-->"
