"""Runs the Python of a page as one session: code blocks in, what each prints out, as JSON.

    python session.py < blocks.json > outputs.json

An error that a block does not catch is printed as ``Kind: message``; the next block goes on.
"""

import io
import json
import sys
import traceback
from contextlib import redirect_stdout
from typing import Any


def run(code: str, place: str, scope: dict[str, Any]) -> str:
    """What one block prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        try:
            exec(compile(code, place, "exec"), scope)  # noqa: S102 the page's own code
        except Exception as error:
            traceback.print_exc()
            out.write(f"{type(error).__name__}: {error}\n")
    return out.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, "")
    session: dict[str, Any] = {"__name__": "__main__"}
    json.dump([run(code, place, session) for place, code in json.load(sys.stdin)], sys.stdout)
