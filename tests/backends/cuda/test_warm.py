"""What a build runs is all that engines need: nothing is compiled or chosen where requests are served."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from irloom.backends.cuda.buckets import Buckets
from irloom.backends.cuda.warm import batches
from irloom.zoo.models import tiny
from tests.backends.cuda.no_gpu import rehearsal
from tests.tiny import llama_config

MODEL = """
import random
torch.cuda.is_current_stream_capturing = lambda: False

class Card:
    multi_processor_count, major, minor = 132, 9, 0

torch.cuda.get_device_properties = lambda *_: Card
import irloom
from irloom.backends.core import Limits
from irloom.backends.cuda.ahead import rehearsed
from irloom.backends.cuda import products
from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.engine import CudaEngine
from irloom.backends.cuda.kernels import attention_tiles, recurrent_chunk, tiles
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.runner import planned
from irloom.backends.cuda.trials import first_steps, trial
from irloom.backends.cuda.tuning import Tuner
from irloom.backends.cuda.warm import any_weights, batches, once_round
from irloom.backends.pools import pools
from irloom.passes import run_pipeline
from irloom.runtime import Loop, SamplingParams

recurrent_chunk._stages = lambda: 2
m = run_pipeline(irloom.trace(sys.argv[1]), ", ".join(CudaBackend.pipeline))[0]
program = once_round(lower(m))

def engine(tokens, seqs, context):
    limits = Limits(max_tokens=tokens, max_seqs=seqs, max_context=context, memory=1 << 26)
    return CudaEngine(program, any_weights(program, "cpu"), pools(m, limits, context), limits, context, "cpu")

def needed(run):
    jobs = rehearsed(run)
    return {str((job.fn, job.signature, job.constants, job.attrs, job.options)) for job in jobs}

def build(tokens, seqs):
    made = engine(tokens, seqs, tokens)
    for batch in batches(made):
        made.submit(batch)
"""

TRAFFIC = """
# what is many, as a build of so few tokens has it
products.CHUNK, attention_tiles.MOST, tiles.FEW = 512, {"prefill": 512, "decode": 64}, 1 << 16

asked, choose = set(), Tuner.choose

def counted(self, name, key, candidates, *more):
    asked.add(f"{name} {key}: {list(candidates)}")  # by others a choice is no candidate, and made again
    return choose(self, name, key, candidates, *more)

Tuner.choose = counted

def serve(tokens, seqs, context, draw):
    loop = Loop(engine(tokens, seqs, context))
    for _ in range(24):
        params = SamplingParams(
            max_tokens=draw.randint(1, 9), ignore_eos=True, temperature=draw.choice([0, 1]),
            top_p=draw.choice([1, 0.9]), logprobs=draw.choice([None, 2]),
            repetition_penalty=draw.choice([1, 1.1]),
        )
        loop.add_request([7] * draw.randint(1, draw.choice([4, context // 2])), params)
        for _ in range(draw.randint(0, 3)):
            loop.step()
    while loop.unfinished:
        loop.step()

def lacking(run):
    asked.clear()
    return sorted(needed(run) - built) + sorted(asked - known)

built, known = needed(lambda: build(512, 64)), set(asked)
missing = {"larger": lacking(lambda: build(1024, 128))}
for seed, limits in enumerate([(512, 64, 512), (512, 1, 40), (300, 50, 1100), (77, 3, 200)]):
    missing[str(limits)] = lacking(lambda: serve(*limits, random.Random(seed)))
print(json.dumps({"kernels": len(built), "choices": len(known), "missing": missing}))
"""

OPENED = """
asked, choose = {}, Tuner.choose

def counted(self, name, key, candidates, *more):
    asked.setdefault(f"{name} {key}", list(candidates))
    return choose(self, name, key, candidates, *more)

Tuner.choose = counted
def chosen():  # as a clock does, but by chance; some choices follow from others
    built.update(needed(lambda: build(8192, 1024)))
    new = {name: repr(draw.choice(some)) for name, some in asked.items() if name not in tuner().known}
    tuner().keep(new)
    return len(new)

draw, built = random.Random(0), set()
while chosen():
    pass
known = {*asked}

def opened(tokens, seqs, context):
    made = engine(tokens, seqs, context)
    first_steps(made)
    for batch in batches(made):
        if max(batch.context) <= context:
            made.submit(batch)

missing = {}
for limits in json.loads(sys.argv[2]):
    asked.clear()
    missing[str(limits)] = sorted(needed(lambda: opened(*limits)) - built) + sorted({*asked} - known)
print(json.dumps({"kernels": len(built), "choices": len(known), "missing": missing}))
"""

ROOM = """
made = engine(100, 64, 64)
size, fits = len(made.runner.block.bytes), made.buckets.of

def wants(counts):
    bucket = fits(sum(counts), len(counts))
    return planned(program, bucket.tokens, bucket.seqs)

steps = [[n - s + 1, *[1] * (s - 1)] for n in made.buckets.tokens for s in (33, 40, 47) if s < n <= 96]
over = [counts for counts in steps if wants(counts) > size]
rehearsed(lambda: [made.submit(trial(made, counts)) for counts in over])
held = [wants(counts) <= len(made.runner.block.bytes) for counts in over]
print(json.dumps({"over": len(over), "held": held}))
"""

LIMITS = [
    (64, 1, 64), (64, 3, 8192), (64, 64, 100), (100, 1, 1280), (100, 64, 64), (8192, 1, 8192),
    (8192, 3, 100), (8192, 64, 1280), (8192, 1000, 64), (20000, 1000, 100),
]  # fmt: skip
"""Tokens and sequences of a step, and tokens of a sequence, that engines are opened with."""


def test_traffic_launches_what_a_build_has_run(tmp_path: Path) -> None:
    """Requests of all lengths, in engines of other limits than the build's, and steps of sizes beyond: no
    launch reaches a GPU here, but each has been asked for in the build, and so has every choice.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 512}
    llama_config(dtype="bfloat16", max_position_embeddings=2048, **sizes).save_pretrained(tmp_path / "model")
    found = rehearsal(MODEL + TRAFFIC, tmp_path, tmp_path / "model")
    assert found["kernels"] > 50 and found["choices"] > 50
    assert all(not missing for missing in found["missing"].values()), found["missing"]


WIDER = {"hidden_size": 128, "head_dim": 64, "vocab_size": 512, "max_position_embeddings": 16384}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "jamba"])
def test_opening_launches_what_a_build_has_run(tmp_path: Path, family: str) -> None:
    """Whatever the limits: numbers that depend on them are not known to kernels that read them."""
    config = tiny(family)
    given = config.to_dict()
    wider = {name: n for name, n in WIDER.items() if name in given}
    made = type(config)(**{**given, **wider, "dtype": "bfloat16", "architectures": config.architectures})
    made.save_pretrained(tmp_path / "model")
    found = rehearsal(MODEL + OPENED, tmp_path, tmp_path / "model", json.dumps(LIMITS))
    assert found["kernels"] > 50 and found["choices"] > 50
    assert all(not missing for missing in found["missing"].values()), found["missing"]


def test_steps_that_need_more_than_the_largest_have_it(tmp_path: Path) -> None:
    """Values of other sizes leave other gaps to those behind them."""
    tiny("gemma3_text").save_pretrained(tmp_path / "model")
    found = rehearsal(MODEL + ROOM, tmp_path, tmp_path / "model")
    assert found["over"] and all(found["held"])


sizes = st.integers(1, 3000)


@given(sizes, sizes, sizes, sizes)
def test_sizes_of_steps_are_those_of_larger_limits(tokens: int, seqs: int, more: int, others: int) -> None:
    """And they hold whatever the limits allow."""
    small, large = Buckets(tokens, seqs), Buckets(tokens + more, seqs + others)
    for name in ("tokens", "seqs", "decodes"):
        assert set(getattr(small, name)) <= set(getattr(large, name))
    step = small.of(tokens, min(seqs, tokens))
    assert step.tokens >= tokens and step.seqs >= min(seqs, tokens)
    assert small.largest.tokens >= step.tokens and small.largest.seqs >= step.seqs


few = st.integers(1, 300)


@given(few, few, few, few)
@example(64, 64, 60, 40)
def test_every_size_of_a_step_is_run(max_tokens: int, max_seqs: int, tokens: int, seqs: int) -> None:
    """Of steps where sequences bring more than a token, every number of rows and every number of sequences:
    kernels and choices depend on one of them. As many sequences as tokens may be allowed.
    """
    max_seqs, tokens = min(max_seqs, max_tokens), min(tokens, max_tokens)
    buckets = Buckets(max_tokens, max_seqs)
    engine = SimpleNamespace(max_tokens=max_tokens, max_seqs=max_seqs, buckets=buckets, pools=(), vocab=9)
    run = [buckets.of(len(b.tokens), len(b.context)) for b in batches(engine)]  # pyright: ignore[reportArgumentType]
    step = buckets.of(tokens, min(seqs, max_seqs, tokens))
    if step.decode:
        assert step in run
    else:
        mixed = [b for b in run if not b.decode]
        assert step.tokens in {b.tokens for b in mixed} and step.seqs in {b.seqs for b in mixed}
