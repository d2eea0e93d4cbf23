"""State of every kind: in chunks, mixed batches, resumed or from prefixes, logits are those of all tokens."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from irloom.backends.artifact import EngineReader
from irloom.backends.core import Limits, backend
from irloom.ir.plan import kv_plan
from irloom.zoo.serve import Script, Served
from irloom.zoo.serve import serve as run

from .kinds import NAMES, model
from .written import CONTEXT, EVERY, TARGETS, Written

TOLERANCE = 2e-5
STEP_TOKENS = 7
LIMITS = Limits(max_tokens=STEP_TOKENS, max_seqs=4, threads=1)
PROMPTS = (5, 19, 1, 14)
"""Of four sequences; each goes on, a token a step, to four dozens and some."""
KEPT = 41
"""Tokens of the first sequence that a later one begins with."""


@dataclass(frozen=True)
class Case:
    """A model, an engine of it, and sequences with the logits to expect."""

    model: Written
    engine: Path
    scripts: list[Script]

    def serve(self, scripts: list[Script], memory: int | None = None) -> Served:
        """These sequences together in small steps, then one that starts as the first did."""
        reader = EngineReader(self.engine)
        engine: Any = backend(reader.manifest.target).open(reader, replace(LIMITS, memory=memory))
        return run(engine, scripts, self.scripts[-1:])


@pytest.fixture(scope="module", params=NAMES)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def scripts(kind) -> list[Script]:
    written, draw = model(kind), torch.Generator().manual_seed(4)
    made = [torch.randint(40, (48 + i,), generator=draw) for i, _ in enumerate(PROMPTS)]
    made.append(torch.cat([made[0][:KEPT], torch.randint(40, (5,), generator=draw)]))
    return [Script(t, n, written.logits(t)) for t, n in zip(made, (*PROMPTS, KEPT + 3), strict=True)]


@pytest.fixture(scope="module", params=TARGETS)
def case(request, kind, scripts, tmp_path_factory) -> Case:
    written = model(kind)
    return Case(written, written.build(request.param, tmp_path_factory.mktemp("engine") / "engine"), scripts)


def test_chunks_and_mixed_batches_and_prefixes(case):
    served = case.serve(case.scripts[:-1])
    assert served.error < TOLERANCE, served.where
    assert served.preemptions == 0
    assert served.cached == KEPT // EVERY * EVERY


def test_eviction_and_resuming(case):
    """There is memory for one sequence, and each that arrives goes before those that run."""
    memory = kv_plan(case.model.planned("reference")).bytes(CONTEXT, 1, STEP_TOKENS)
    scripts = [replace(s, arrives=4 * i, priority=-i) for i, s in enumerate(case.scripts[:-1])]
    served = case.serve(scripts, memory)
    assert served.error < TOLERANCE, served.where
    assert served.preemptions > 0


FEATURES = {
    "full attention": 2 * 2 * 8,
    "latents, expanded": 2 * 2 * (10 + 8),
    "latents, absorbed": 2 * (12 + 4),
    "keys and values of another layer": 2 * 2 * 8,
}
"""What all layers of a model keep of a token: keys and values of two layers; two more are lent theirs."""


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_kept_twice(name, target):
    assert kv_plan(model(name).planned(target)).token_bytes == 4 * FEATURES[name]
