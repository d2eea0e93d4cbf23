"""The table of ``irloom bench``: a row for each quantity, a column for irloom and two for each peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..driver import Figures, Roofline
    from .bench import Compared


@dataclass(frozen=True)
class Row:
    """A quantity: how it is read from figures and shown, and whether more of it is better."""

    name: str
    of: Callable[[Figures], float | None]
    form: str = "{:,.2f}"
    more: bool = False

    def cell(self, figures: Figures) -> str:
        """A dash where it is not known."""
        value = self.of(figures)
        return "-" if value is None else self.form.format(value)

    def times_better(self, own: Figures, peer: Figures) -> str:
        """How many times better irloom is: above 1 always means that it is."""
        ours, theirs = self.of(own), self.of(peer)
        if not ours or not theirs:
            return ""
        return f"{ours / theirs if self.more else theirs / ours:.2f}x"


def rows(prompt_tokens: int, requests: int) -> list[Row]:
    """Every quantity, latencies in milliseconds."""
    many = f"{requests} together: "
    return [
        Row("alone: decoded tokens/s", lambda f: f.decode_per_s, "{:,.1f}", more=True),
        Row(f"first token after {prompt_tokens} prompt tokens, ms", lambda f: 1e3 * f.alone.first_s.p50),
        Row("  p90", lambda f: 1e3 * f.alone.first_s.p90),
        Row("between tokens, ms", lambda f: 1e3 * f.alone.between_s.p50),
        Row("  p90", lambda f: 1e3 * f.alone.between_s.p90),
        Row("  p99", lambda f: 1e3 * f.alone.between_s.p99),
        Row(f"{many}answered tokens/s", lambda f: f.output_per_s, "{:,.1f}", more=True),
        Row("tokens/s of prompts and answers", lambda f: f.total_per_s, "{:,.1f}", more=True),
        Row("first token, ms", lambda f: 1e3 * f.together.first_s.p50),
        Row("  p90", lambda f: 1e3 * f.together.first_s.p90),
        Row("between tokens, ms", lambda f: 1e3 * f.together.between_s.p50),
        Row("  p90", lambda f: 1e3 * f.together.between_s.p90),
        Row("  p99", lambda f: 1e3 * f.together.between_s.p99),
        Row("joules per answered token", lambda f: f.joules_per_token, "{:,.3f}"),
    ]


def print_compared(found: Compared) -> None:
    """The table, the shares of the roofline below it, and who was left out."""
    peers = found.peers.values()
    table = [["", "irloom", *(cell for f in peers for cell in (f.about, "irloom is"))]]
    for row in rows(found.load.prompt_tokens, found.load.requests):
        cells = [cell for f in peers for cell in (row.cell(f), row.times_better(found.own, f))]
        table.append([row.name, row.cell(found.own), *cells])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for name, *cells in table:
        line = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        click.echo("  ".join([name.ljust(widths[0]), *line]).rstrip())
    if found.roofline is not None:
        click.echo(f"\n{said(found.own, found.roofline)}")
    for name, reason in found.left_out.items():
        click.echo(f"without {name}: {reason}")


def said(own: Figures, bounds: Roofline) -> str:
    """Of the machine's measured rates, how much irloom reaches."""
    text = f"decode: {own.decode_per_s / bounds.decode_per_s:.0%} of "
    text += f"{bounds.decode_per_s:,.1f} tokens/s, by {bounds.device.bandwidth / 1e9:,.0f} GB/s of bandwidth"
    if bounds.first_token_s is not None:
        share = bounds.first_token_s / own.alone.first_s.p50
        text += f"\nfirst token: {share:.0%} of what takes {1e3 * bounds.first_token_s:,.2f} ms at full rate"
    return f"{text}\n{bounds.device.name}, {bounds.device.source}"
