"""``irloom run``: generate from a model and stream the text; without a prompt, an interactive chat."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import click

from .core import adapter_option, command, open_llm, pipeline_options, trust_option
from .progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Generator

    from .. import SamplingParams
    from ..driver import Choice

Messages = list[dict[str, str]]


class Talker(Protocol):
    """What a conversation needs of an ``LLM``."""

    def stream(self, prompt: str | Messages, params: SamplingParams) -> Generator[str]:
        """The answer's text as it comes; closing the stream cancels the request."""
        ...


@command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Stop after this many tokens.")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token."
)
@click.option("--top-k", type=int, help="Draw from the K likeliest tokens.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that make up this probability.")
@click.option("--min-p", type=float, help="Drop tokens less likely than this share of the likeliest.")
@click.option("--repetition-penalty", type=float, help="Above 1 makes tokens already seen less likely.")
@click.option("--seed", type=int, help="Makes the draws repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be given again.")
@click.option("--batch-invariant", is_flag=True, help="Say what would be said in any batch; slower on a GPU.")
@pipeline_options
@adapter_option
@trust_option
def run(
    model: str,
    prompt: str | None,
    passes: Choice,
    adapter: str | None,
    trust: bool,
    batch_invariant: bool,
    **sampling: Any,
) -> None:
    """Trace, compile and generate, streaming the text to stdout.

    Without PROMPT: a chat when stdin is a terminal, else the prompt is read from stdin.

    \b
    irloom run gemma-3-270m.gguf "Once upon a time"
    irloom run Qwen/Qwen3-0.6B
    """
    from .. import SamplingParams

    given = {name: value for name, value in sampling.items() if value is not None}
    params = SamplingParams(**given)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    with progress_bars() as report:
        more = {"adapter": adapter, "trust_remote_code": trust, "batch_invariant": batch_invariant}
        llm = open_llm(model, passes, progress=report, **more)
    if prompt is not None:
        _stream(llm, prompt, params)
    else:
        _chat(llm, params)


def _stream(llm: Talker, prompt: str | Messages, params: SamplingParams) -> str:
    """Print the text as it comes, and return it; a stream closed early, as by Ctrl-C, frees its pages."""
    said: list[str] = []
    with closing(llm.stream(prompt, params)) as deltas:
        for delta in deltas:
            said.append(delta)
            click.echo(delta, nl=False)
            sys.stdout.flush()
    click.echo()
    return "".join(said)


def _chat(llm: Talker, params: SamplingParams) -> None:
    """Turns until end of input; Ctrl-C stops an answer and leaves the conversation as it was before it."""
    click.echo("Ctrl-D ends the chat, Ctrl-C an answer.", err=True)
    messages: Messages = []
    while True:
        try:
            said = input("> ")
        except EOFError:
            click.echo()
            return
        messages.append({"role": "user", "content": said})
        try:
            answer = _stream(llm, messages, params)
        except KeyboardInterrupt:
            click.echo()
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})
