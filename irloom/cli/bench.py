"""``irloom bench``: throughput and latency of a model on this machine, beside what its memory allows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .core import command, json_option, open_llm, pipeline_options, print_json, print_table, trust_option
from .progress import progress_bars

if TYPE_CHECKING:
    from ..driver import Choice, Figures


@command("bench")
@click.argument("model")
@click.option("--requests", type=click.IntRange(1), default=16, show_default=True, help="Sent together.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Medians of so many runs."
)
@pipeline_options
@trust_option
@json_option
def bench(
    model: str,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Measure throughput and latency.

    One request alone, then many together; the prompts are random tokens. The share of bandwidth is the bytes
    that a decode step must read, over its time, over the machine's measured read bandwidth.
    """
    from ..driver import measure

    with progress_bars() as report:
        llm = open_llm(model, passes, progress=report, trust_remote_code=trust)
        figures = measure(llm, requests, prompt_tokens, new_tokens, repeats, progress=report)
    if as_json:
        print_json(asdict(figures))
        return
    print_table(_rows(figures, requests, prompt_tokens))


def _rows(f: Figures, requests: int, prompt_tokens: int) -> list[tuple[str, str]]:
    share = f", {f.bandwidth_share:.0%} of the machine's read bandwidth" if f.bandwidth_share else ""
    return [
        ("first token", f"{f.first_token_s * 1e3:,.1f} ms after {prompt_tokens} prompt tokens"),
        ("one alone", f"{f.decode_per_s:,.1f} tokens/s decoded{share}"),
        (f"{requests} together", f"{f.total_per_s:,.1f} tokens/s of prompts and answers"),
        ("", f"{f.output_per_s:,.1f} tokens/s of answers"),
    ]
