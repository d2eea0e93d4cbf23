"""The newest results of ``gpu.py`` as docs/benchmarks.md, a table, and docs/benchmarks.svg, a plot.

    python benchmarks/render.py

Standard library only.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BAR, GAP, LEFT, WIDE, RIGHT = 16, 14, 240, 420, 300
"""Pixels: the height of a bar, between rows, for titles, of the longest bar, for what stands behind it."""
COLORS = ("#2f6f4f", "#7a8ba8", "#b0a18c", "#c9b27c", "#a88a9c")
"""irloom's, and those of peers in the order they first appear."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("results", type=Path, nargs="?", help="default: the newest of benchmarks/results")
    p.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = p.parse_args()
    newest = args.results or max(ROOT.glob("benchmarks/results/cuda-*.json"), default=None)
    if newest is None:
        p.error("no results: run benchmarks/gpu.py first")
    results = json.loads(newest.read_text())
    (args.docs / "benchmarks.md").write_text(page(results))
    (args.docs / "benchmarks.svg").write_text(plot(results))


def page(results: dict[str, Any]) -> str:
    """The table, with what it was measured on."""
    card = results["card"] or {"name": "a GPU that was not probed"}
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    heads = ["", "", "irloom", "goal", "of roofline", "J/token", "peers, and how many times better irloom is"]
    lines = [
        "# Benchmarks on a GPU",
        "",
        f"{card['name']}, driver {results['driver']}, {results['date']}; {versions}. {_rates(card)}",
        "Random weights of the real shapes, greedy answers of full length, medians; each peer in the same",
        "run, in a process of its own: see [benchmarks/README.md](../benchmarks/README.md#gpupy).",
        "",
        "![The same figures as bars](benchmarks.svg)",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(_cells(row))} |" for row in results["rows"].values()),
    ]
    out = [
        f"- {row['title']}: without {peer}: {reason}"
        for row in results["rows"].values()
        for peer, reason in row.get("left_out", {}).items()
    ]
    missed = [_missed(row) for row in results["rows"].values() if "failed" not in row and not reached(row)]
    lines += ["", "Goals that are missed:", "", *missed] if missed else []
    remarks = [f"- {text}" for text in results.get("remarks", [])]  # written into the file, as a row's note
    lines += ["", "How it was run, and what it does not show:", "", *remarks] if remarks else []
    return "\n".join([*lines, *(["", "Left out:", "", *out] if out else []), ""])


def _missed(row: dict[str, Any]) -> str:
    """By how much, and why: what somebody wrote into the file of results as the row's ``note``."""
    reached = f"{number(row['value'])} of {number(row['goal'])} {row['unit']}"
    text = f"- {row['title']}: {reached}, {better(row, row['goal']):.0%} of the goal"
    return f"{text}. {row['note']}" if row.get("note") else text


def _rates(card: dict[str, Any]) -> str:
    if "bandwidth" not in card:
        return ""
    flops = ", ".join(f"{rate / 1e12:,.0f} in {elem}" for elem, rate in card["flops"].items())
    return f"Measured there: memory at {card['bandwidth'] / 1e12:.2f} TB/s, products at TFLOP/s: {flops}."


def _cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["title"], "", "failed", "", "", "", row["failed"].replace("|", "/")]
    peers = [f"{name}: {number(v)}, {better(row, v):.2f}x" for name, v in row["peers"].items()]
    share, joules = row["roofline_share"], row["joules_per_token"]
    return [
        row["title"],
        row["unit"],
        f"**{number(row['value'])}**",
        f"{number(row['goal'])} {'reached' if reached(row) else 'missed'}",
        f"{share:.0%}" if share is not None else "",
        f"{joules:.3f}" if joules is not None else "",
        "; ".join(peers),
    ]


def better(row: dict[str, Any], peer: float) -> float:
    """How many times better irloom is than a peer's figure."""
    return row["value"] / peer if row["more_is_better"] else peer / row["value"]


def reached(row: dict[str, Any]) -> bool:
    """Whether the goal is met."""
    return better(row, row["goal"]) >= 1


def number(value: float) -> str:
    """Three digits at least.

    >>> number(17399.2), number(48.3)
    ('17,399', '48.3')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(results: dict[str, Any]) -> str:
    """Bars of every row, as long as it is fast against the fastest of its row; a line marks the goal."""
    rows = [row for row in results["rows"].values() if "failed" not in row]
    names = list(dict.fromkeys(["irloom", *(name for row in rows for name in row["peers"])]))
    color = {name: COLORS[min(i, len(COLORS) - 1)] for i, name in enumerate(names)}
    parts, y = [], GAP
    for row in rows:
        bars = {"irloom": row["value"], **row["peers"]}
        speed = {name: v if row["more_is_better"] else 1 / v for name, v in bars.items()}
        goal = row["goal"] if row["more_is_better"] else 1 / row["goal"]
        scale, top = WIDE / max(*speed.values(), goal), y
        at = LEFT + scale * goal
        parts.append(_text(LEFT - 10, y + BAR - 4, row["title"], "end"))
        for name, value in bars.items():
            length, unit = scale * speed[name], row["unit"] if name == "irloom" else name
            behind = max(LEFT + length, at) + 6
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" fill="{color[name]}"/>'
            )
            parts.append(_text(behind, y + BAR - 4, f"{number(value)} {unit}"))
            y += BAR
        parts.append(f'<path d="M{at:.1f} {top - 2}V{y}" stroke="#b03a2e" stroke-dasharray="3 2"/>')
        y += GAP
    legend = "irloom's bar is the first of each row, the red line its goal; longer is faster"
    parts.append(_text(LEFT, y + 6, legend))
    size = f'width="{LEFT + WIDE + RIGHT}" height="{y + GAP + 6}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
