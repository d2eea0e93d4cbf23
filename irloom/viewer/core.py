"""``view``: a run's record as one HTML file that shows its programs, pass by pass."""

from __future__ import annotations

from pathlib import Path

from irloom.backends.machine import device as named
from irloom.ir.device import Device
from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module
from irloom.passes import Record

from .build import Settings, document
from .html import render


def view(
    what: Module | Record,
    out: str | Path | None = None,
    *,
    device: str | Device | None = None,
    context: int = 1024,
    seqs: int = 1,
) -> str:
    """The page of a record, or of a program alone, as text; with ``out`` it is also written there.

    Costs are those of a decode of ``seqs`` sequences and of the prefill of a prompt, both with ``context``
    tokens in the end. On a ``device``, such as ``"h200"``, they have a predicted time.
    """
    if isinstance(device, str):
        device = named(device)
    text = render(document(what, Settings(context, seqs, device)))
    if out is not None:
        write(text, Path(out))
    return text


def write(text: str, out: Path) -> None:
    """Write a page beside its place, then move it there: it is whole or it is not there."""
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(text, "utf-8")
        part.replace(out)
    except OSError as error:
        raise IrloomError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
