"""``irloom bench``: throughput and latency of a model on this machine, beside its limits and beside peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .core import command, json_option, open_llm, pipeline_options, print_json, trust_option
from .progress import Report, progress_bars

if TYPE_CHECKING:
    from ..driver import Choice, Figures, Load, Roofline
    from ..driver.peers import Peer

ELEMENTS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
"""What torch calls the elements that targets compute in."""


@dataclass(frozen=True)
class Compared:
    """All that was measured: irloom's figures, those of peers by name, and why others were left out."""

    load: Load
    own: Figures
    peers: dict[str, Figures]
    left_out: dict[str, str]
    roofline: Roofline | None

    def to_json(self) -> dict[str, Any]:
        """For ``--json``, with what the machine is."""
        from ..driver.peers.energy import driver

        found = {"load": asdict(self.load), "driver": driver(), **asdict(self.own)}
        peers = {name: asdict(figures) for name, figures in self.peers.items()}
        bounds = self.roofline and asdict(self.roofline)
        return {**found, "roofline": bounds, "peers": peers, "left_out": self.left_out}


@command("bench")
@click.argument("model")
@click.option("--requests", type=click.IntRange(1), default=16, show_default=True, help="Sent together.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Medians of so many runs."
)
@click.option(
    "--max-seqs", type=click.IntRange(1), help="Served at once, by everybody.  [default: all, up to 1024]"
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="vllm, transformers, compile, batch or irloom, with settings of its own as in "
    '"vllm(quantization=fp8)"; may be given again.',
)
@click.option("--peer-python", metavar="PATH", help="An interpreter that has the peers.  [default: this one]")
@click.option(
    "--peer-limit",
    type=click.FloatRange(1),
    default=1800,
    show_default=True,
    help="Seconds a peer may take to load, and to answer once.",
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
    max_seqs: int | None,
    peers: Sequence[str],
    peer_python: str | None,
    peer_limit: float,
    passes: Choice,
    trust: bool,
    as_json: bool,
) -> None:
    """Measure throughput and latency.

    One request alone, then many together; the prompts are random tokens, the answers greedy and of full
    length. Each peer reads the same weights and gets the same requests, in a process of its own and before
    irloom opens. The roofline is the bytes that a decode step must read at the measured bandwidth, and what a
    prompt must move and compute.
    """
    from ..driver import Load
    from ..driver.peers import peer

    load = Load(requests, prompt_tokens, new_tokens, repeats, max_seqs)
    chosen = [peer(text) for text in peers]
    with progress_bars() as report:
        found = compare(model, passes, chosen, load, peer_python, peer_limit, trust, report)
    if as_json:
        print_json(found.to_json())
        return
    from .bench_table import print_compared

    print_compared(found)


def compare(
    model: str,
    passes: Choice,
    peers: Sequence[Peer],
    load: Load,
    python: str | None,
    limit: float,
    trust: bool,
    report: Report,
) -> Compared:
    """Measure every peer, then irloom; a peer that fails is left out, irloom's errors are raised."""
    from ..backends.artifact import is_engine, read_manifest
    from ..driver import Own, measure, measured, passes_of, roofline
    from ..frontends.hf.hub import find

    path, here = find(model, trust), passes.here()
    target = read_manifest(path).target if is_engine(path) else here.target
    if not is_engine(path):
        passes_of(here)  # what is wrong with them should not be said after an hour of peers
    figures, left_out = measure_peers(peers, path, target, load, python, limit, report)
    device = measured(target)
    limits = {"max_seqs": load.at_once, "max_context": load.longest}
    llm = open_llm(model, passes, progress=report, trust_remote_code=trust, **limits)
    own = measure(Own(llm), load, report)
    return Compared(load, own, figures, left_out, device and roofline(llm, device, load))


def measure_peers(
    peers: Sequence[Peer],
    path: Path,
    target: str,
    load: Load,
    python: str | None,
    limit: float,
    report: Report,
) -> tuple[dict[str, Figures], dict[str, str]]:
    """Figures by peer, and the reasons of those that have none: the same weights, device and element."""
    from ..backends.artifact import is_engine
    from ..driver import backend, measure
    from ..driver.peers import PeerError, PeerProcess, Setup

    if is_engine(path):
        return {}, {str(one): "peers read the model, and this is its engine" for one in peers}
    device = "cuda" if target in ("cuda", "tensorrt") else "cpu"
    dtype = ELEMENTS.get(backend(target).dtype, "float32")
    setup = Setup(str(path.resolve()), device, dtype, load.longest, load.at_once)
    figures: dict[str, Figures] = {}
    left_out: dict[str, str] = {}
    for one in peers:
        name = str(one)

        def named(stage: str, done: int, total: int, name: str = name) -> None:
            report(name, done, total)

        named("load", 0, 0)
        try:
            with PeerProcess(one, setup, python, limit) as process:
                figures[name] = measure(process, load, named)
        except PeerError as error:
            left_out[name] = error.message
    return figures, left_out
