"""``page``: a run's record as one HTML file that shows its programs, pass by pass."""

from __future__ import annotations

from pathlib import Path

from irloom.ir.device import Device
from irloom.ir.graph import Module
from irloom.passes import Record

from .build import Errors, Settings, document
from .html import render


def page(
    what: Module | Record,
    *,
    context: int = 1024,
    seqs: int = 1,
    device: Device | None = None,
    errors: dict[int, Errors] | None = None,
) -> str:
    """A page for a record, or for a program alone.

    Costs are those of a decode of ``seqs`` sequences and of the prefill of a prompt, both with ``context``
    tokens in the end; on a ``device`` they have a predicted time. ``errors`` are those of values by the
    number of the step in the record.
    """
    return render(document(what, Settings(context, seqs, device), errors))


def view(what: Module | Record, out: str | Path | None = None, *, device: str | None = None) -> str:
    """The page of a record or a program as text; with ``out`` it is also written there, whole or not at all.

    ``device`` names a card of ``irloom.ir.device``, such as ``"h200"``; nodes then have a predicted time.
    """
    from irloom.ir.device import device as named

    text = page(what, device=None if device is None else named(device))
    if out is not None:
        write(text, Path(out))
    return text


def write(text: str, out: Path) -> None:
    """Write a page beside its place, then move it there."""
    part = out.with_name(out.name + ".part")
    try:
        part.write_text(text, "utf-8")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
