"""The rows of a sweep as text: totals per column, and the page ``docs/models.md``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cmp_to_key
from statistics import median

from irloom.zoo.core import COLUMNS, UNTRIED, Row
from irloom.zoo.told import Told, failing, newer

HEAD = """# Architectures

Every causal language model of transformers {version}, tiny and with random weights, taken through irloom.
Written by `irloom zoo --docs docs/models.md`; `irloom zoo --since docs/models.md` tries another release of
transformers against it.

- *traced*: irloom makes a program of it, with no model code.
- *logits*: the program computes what the library computes, at other lengths than it was traced with.
- *ragged*: several sequences packed in one batch equal each alone.
- *decode*: prompts in chunks, tokens one by one through the caches, requests mixed, one evicted and resumed,
  one from a cached prefix; each step equals the library's forward over the whole sequence (reference target).
- *compiled*: the same on an engine of the CPU backend.
- *raised*: at least 99 % of the FLOPs are in model ops; the number is the share. It is that of the tiny
  model, where arithmetic weighs some fifty times more against products than in practice. Where that is less,
  the model in the library's default sizes is counted too. Sums of the residual stream and products of
  activations count as not raised.
"""


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """How many architectures are true in each column, how many in all, and how many there are."""
    counts = {column: sum(getattr(row, column) is True for row in rows) for column in COLUMNS}
    return {**counts, "all": sum(row.passed for row in rows), "of": len(rows)}


def page(rows: Sequence[Row], version: str, former: str = "") -> str:
    """The page of a sweep: totals, a line per architecture, and every reason with those it holds for.

    Of the page ``former`` the totals of other releases stay. The newest release is told in full; of an older
    one the page says what is otherwise there.
    """
    told = Told.read(former)
    told.totals[version] = _totals(rows)
    if newer(told.version, version):
        told.others[version] = _otherwise(rows, told.promised(""))
    else:
        told.version, told.body = version, "\n".join(_body(rows)).strip()
        told.others.pop(version, None)
    versions = sorted(told.totals, key=cmp_to_key(lambda a, b: 1 if newer(b, a) else -1))
    lines = [
        HEAD.format(version=told.version),
        line(["transformers", "of", *COLUMNS, "all"]),
        line(["---"] * (len(COLUMNS) + 3)),
        *(f"| {v} {told.totals[v]}" for v in versions),
        "",
        told.body,
        *(f"\n## transformers {v}\n\n{told.others[v]}" for v in versions if v in told.others),
    ]
    return "\n".join(lines) + "\n"


def _totals(rows: Sequence[Row]) -> str:
    counts = totals(rows)
    return line([str(counts[c]) for c in ("of", *COLUMNS, "all")])


def _otherwise(rows: Sequence[Row], promised: dict[str, set[str]]) -> str:
    """What a release lacks of that which is told in full."""
    lost = set(promised) - {row.name for row in rows}
    lines = [f"Not in it: {', '.join(sorted(lost))}.\n"] if lost else []
    for (column, message), found in failing(rows, promised).items():
        lines.append(f"- {', '.join(name for name, _ in found)}: *{column}*: {_plain(message)}")
    return "\n".join(lines) or "As above."


def _body(rows: Sequence[Row]) -> list[str]:
    built = [row for row in rows if row.built is True]
    shares = [row.flops_in_model_ops for row in rows if row.flops_in_model_ops is not None]
    lines: list[str] = []
    if shares:
        lines += [
            f"Share of the FLOPs in model ops: {min(shares):.1%} at least, {median(shares):.1%} median.",
            "",
        ]
    lines += [
        "## One by one",
        "",
        line(["architecture", *COLUMNS[1:], "model ops", "tensor ops that stayed"]),
    ]
    lines.append(line(["---"] * (len(COLUMNS) + 2)))
    lines += [_row(row) for row in built]
    lines += ["", "## What does not pass, and why", ""]
    for (column, reason), names in sorted(
        _reasons(rows).items(), key=lambda x: (COLUMNS.index(x[0][0]), x[1])
    ):
        lines.append(f"- {', '.join(names)}: *{column}*: {_plain(reason)}")
    return lines


def _reasons(rows: Sequence[Row]) -> dict[tuple[str, str], list[str]]:
    """Each column's reasons and the architectures they hold for; what was not reached has none of its own."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for column in COLUMNS:
            said = getattr(row, column)
            if isinstance(said, str) and not said.startswith(UNTRIED):
                found[column, said].append(row.name)
    return dict(found)


def _row(row: Row) -> str:
    marks = ["yes" if getattr(row, c) is True else "no" for c in COLUMNS[1:-1]]
    share = "" if row.flops_in_model_ops is None else f"{row.flops_in_model_ops:.1%}"
    if row.flops_at_full_size is not None:
        share += f", {row.flops_at_full_size:.1%} at full size"
    share = share if row.raised is True else f"no {share}".rstrip()
    ops = [", ".join(sorted(names)) for names in (row.model_ops, row.tensor_ops)]
    return line([row.name, *marks, share, *ops])


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def _plain(reason: str) -> str:
    """A reason inside Markdown: no character of it means anything."""
    return reason.replace("|", "\\|").replace("<", "&lt;")
