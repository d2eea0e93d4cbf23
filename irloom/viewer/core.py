"""``view``: a run's record as one HTML file that shows its programs, pass by pass."""

from __future__ import annotations

from pathlib import Path

from irloom.backends.machine import device as named
from irloom.ir.device import Device
from irloom.ir.files import write_whole
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
        write_whole(Path(out), text)
    return text
