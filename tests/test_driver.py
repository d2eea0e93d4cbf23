"""From a model on disk to answers, on the real engine: the same text however a request is served."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import irloom
from irloom import driver
from irloom.backends.artifact import is_engine
from irloom.backends.core import Limits
from irloom.driver.llm import _opened
from irloom.ir.errors import CheckpointError, EngineMismatch, PipelineError, RequestError, TraceError
from tests.tiny import gemma_config, llama_config, save_model

PROMPTS = [
    "once upon",
    "a",
    "there was a little compiler that could read its own programs, once upon a time " * 2,
    "programs read",
]
pytestmark = pytest.mark.usefixtures("own_cache")
GREEDY = irloom.SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module", params=[llama_config, gemma_config], ids=["llama", "gemma3"])
def model(request, tmp_path_factory):
    """A directory and the library's model in it."""
    folder = tmp_path_factory.mktemp("model")
    return folder, save_model(request.param(), folder)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    return driver.compile(model[0], out=tmp_path_factory.mktemp("engines") / "engine")


def answers(engine: Path, prompts=PROMPTS, params=GREEDY, **limits) -> list[list[int]]:
    llm = driver.LLM(engine, threads=1, **limits)
    outputs = llm.generate(prompts, params)
    llm.loop.check()
    assert llm.loop.pages.in_use == 0
    return [o.token_ids for o in outputs]


def test_greedy_answers_are_the_librarys(model, engine):
    llm = driver.LLM(engine, threads=1)
    for prompt, told in zip(PROMPTS, llm.generate(PROMPTS, GREEDY), strict=True):
        ids = torch.tensor([llm.tokenizer.encode(prompt).ids])
        with torch.no_grad():
            wanted = model[1].generate(
                ids, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=None
            )
        assert told.token_ids == wanted[0, ids.shape[1] :].tolist()


def test_a_request_gets_the_same_tokens_alone_batched_chunked_and_after_a_prefix_hit(engine):
    together = answers(engine)
    assert [answers(engine, [p])[0] for p in PROMPTS] == together
    assert answers(engine, max_tokens=7, max_seqs=3) == together
    llm = driver.LLM(engine, threads=1)
    first = llm.generate([PROMPTS[2]], GREEDY)[0]
    again = llm.generate([PROMPTS[2]], GREEDY)[0]
    assert again.cached_tokens > 0
    assert first.token_ids == again.token_ids == together[2]


def engine_bytes(engine: Path, sequences: float) -> int:
    """Memory for pages of so many sequences of 96 tokens: little enough that four at a time do not fit."""
    llm = driver.LLM(engine, threads=1, max_seqs=1, max_context=96, max_tokens=16)
    return int(sequences * sum(p.pages * p.page_bytes for p in llm.engine.pools))


def test_a_preempted_request_gets_the_same_tokens(engine):
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3], "little"]
    params = irloom.SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    llm = driver.LLM(engine, threads=1, max_tokens=16, max_context=96, memory=engine_bytes(engine, 1.05))
    told = [o.token_ids for o in llm.generate(prompts, params)]
    alone = sum(len(llm.tokenizer.encode(p).ids) + 59 for p in prompts)
    assert llm.loop.stats.computed + llm.loop.stats.cached > alone, "some tokens were computed twice"
    assert told == answers(engine, prompts, params)


def test_threads_do_not_change_a_token(engine):
    llm = driver.LLM(engine, threads=2)
    assert [o.token_ids for o in llm.generate(PROMPTS, GREEDY)] == answers(engine)


def test_the_reference_target_agrees(model, engine, tmp_path):
    reference = driver.compile(model[0], target="reference", out=tmp_path / "reference")
    assert answers(reference, PROMPTS[:2]) == answers(engine, PROMPTS[:2])


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantized_engine_follows_its_dequantized_reference(model, tmp_path, dtype):
    passes = [*driver.backend("cpu").pipeline]
    passes.insert(passes.index("kv-cache"), f"quantize({dtype})")
    pipeline = ", ".join(passes)
    cpu = driver.compile(model[0], pipeline=pipeline, out=tmp_path / "cpu")
    plain = driver.compile(model[0], target="reference", pipeline=pipeline, out=tmp_path / "reference")
    params = irloom.SamplingParams(temperature=0.0, max_tokens=1, logprobs=5)
    told, wanted = (driver.LLM(e, threads=1).generate(PROMPTS, params) for e in (cpu, plain))
    for a, b in zip(told, wanted, strict=True):
        assert a.logprobs and b.logprobs
        known = dict(b.logprobs[0].top)
        shared = [abs(score - known[token]) for token, score in a.logprobs[0].top if token in known]
        assert len(shared) >= 3
        assert max(shared) < 0.15, "activations are rounded to int8, nothing else differs"


def test_streamed_text_is_the_whole_text(engine):
    llm = driver.LLM(engine, threads=1)
    assert "".join(llm.stream(PROMPTS[0], GREEDY)) == llm.generate([PROMPTS[0]], GREEDY)[0].text


def test_leaving_a_stream_frees_its_pages(engine):
    llm = driver.LLM(engine, threads=1)
    stream = llm.stream(PROMPTS[0], GREEDY)
    assert isinstance(stream, Generator)
    next(stream)
    assert llm.loop.pages.in_use > 0
    stream.close()
    assert llm.loop.pages.in_use == 0
    llm.loop.check()


def test_a_second_run_takes_the_engine_from_the_cache(model):
    stages = []
    driver.LLM(model[0], progress=lambda stage, done, total: stages.append(stage), threads=1)
    first, stages[:] = set(stages), []
    driver.LLM(model[0], progress=lambda stage, done, total: stages.append(stage), threads=1)
    assert "trace" in first
    assert set(stages) == {"open"}


def test_ctrl_c_in_a_build_leaves_nothing(model, tmp_path):
    def interrupt(stage, done, total):
        if stage == "weights" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver.compile(model[0], out=tmp_path / "engine", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_keeps_the_engine_that_was_there(model, tmp_path):
    out = driver.compile(model[0], out=tmp_path / "engine")
    before = (out / "manifest.sha256").read_text()

    def fail(stage, done, total):
        if stage == "weights":
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        driver.compile(model[0], out=out, progress=fail)
    assert (out / "manifest.sha256").read_text() == before
    assert is_engine(out)


def test_a_place_that_is_not_an_engine_is_not_overwritten(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(EngineMismatch, match="exists and is not an engine"):
        driver.compile(model[0], out=tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").exists()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "0 tokens"),
        ({"prompt_token_ids": []}, "0 tokens"),
        ({"prompt_token_ids": [5] * 300}, "300"),
        ({"prompt_token_ids": [99999]}, "vocabulary"),
        ({"text": "x"}, "not understood"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_a_request_error(engine, prompt, message):
    llm = driver.LLM(engine, threads=1)
    if prompt == "":
        llm.tokenizer.post_processor = None  # else the beginning-of-text token makes it a prompt of one
    with pytest.raises(RequestError, match=message):
        llm.generate([prompt], GREEDY)
    assert llm.loop.pages.in_use == 0


def with_manifest(engine, folder, change) -> Path:
    """A copy of an engine whose manifest was written with other facts."""
    copy = shutil.copytree(engine, folder / "engine")
    facts = json.loads((copy / "manifest.json").read_text())
    change(facts)
    text = json.dumps(facts).encode()
    (copy / "manifest.json").write_bytes(text)
    (copy / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
    return copy


def test_an_engine_for_another_processor_is_refused(engine, tmp_path):
    copy = with_manifest(engine, tmp_path, lambda facts: facts["machine"]["features"].append("avx1024_vnni"))
    with pytest.raises(EngineMismatch) as caught:
        driver.LLM(copy)
    assert "built for a CPU with avx1024_vnni, which this one lacks" in str(caught.value)
    assert "hint: build it again: irloom compile" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "checks"),
    [(EngineMismatch("a GPU"), 0), (RequestError("memory"), 0), (KeyboardInterrupt(), 0), (KeyError("x"), 1)],
    ids=lambda x: type(x).__name__,
)
def test_what_does_not_fit_is_said_before_every_byte_is_checked(error, checks):
    """Weights may be many gigabytes; what they may have to do with is looked into."""
    checked = []

    def breaks_off(reader, limits):
        raise error

    opener: Any = SimpleNamespace(open=breaks_off)
    reader: Any = SimpleNamespace(checked=lambda: checked.append(1))
    with pytest.raises(type(error)):
        _opened(opener, reader, Limits())
    assert len(checked) == checks


def test_an_engine_of_another_irloom_is_refused(engine, tmp_path):
    copy = with_manifest(engine, tmp_path, lambda facts: facts["versions"].update(irloom="0.0.1"))
    with pytest.raises(EngineMismatch, match=f"irloom 0.0.1 when built, {irloom.__version__} here"):
        driver.LLM(copy)


def test_a_model_without_tokenizer_takes_token_ids(tmp_path):
    save_model(llama_config(), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    llm = driver.LLM(driver.compile(tmp_path / "model", out=tmp_path / "engine"), threads=1)
    assert len(llm.generate([{"prompt_token_ids": [5, 6, 7]}], GREEDY)[0].token_ids) == 24
    with pytest.raises(RequestError, match="no tokenizer"):
        llm.generate(["hello"], GREEDY)


def test_a_pipeline_without_caches_is_refused(model, tmp_path):
    with pytest.raises(PipelineError, match="no cache"):
        driver.compile(model[0], pipeline="canonicalize, raise", out=tmp_path / "engine")


def test_an_unknown_target_lists_what_there_is(model, tmp_path):
    with pytest.raises(PipelineError, match="no target 'gpu'"):
        driver.compile(model[0], target="gpu", out=tmp_path / "engine")


def test_without_a_compiler_the_reference_answers(model, engine, tmp_path):
    code = (
        "import sys, irloom\n"
        "llm = irloom.LLM(irloom.compile(sys.argv[1], out=sys.argv[2]))\n"
        "params = irloom.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)\n"
        "print(llm.manifest.target, llm.generate(['once upon'], params)[0].token_ids)\n"
    )
    bare = {k: v for k, v in os.environ.items() if k not in ("PATH", "CXX")} | {"PATH": ""}
    args = [sys.executable, "-c", code, str(model[0]), str(tmp_path / "engine")]
    done = subprocess.run(args, env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"reference {answers(engine, ['once upon'])[0][:8]}"


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises((TraceError, CheckpointError), match="no such"):
        driver.trace(tmp_path / "nothing")
    (tmp_path / "file.bin").write_bytes(b"\0" * 64)
    with pytest.raises(TraceError, match="no frontend claims it"):
        driver.trace(tmp_path / "file.bin")


def test_dumps_at_any_pass(model):
    assert driver.rewritten(model[0], after="trace").passes == []
    m = driver.rewritten(model[0], after="outline")
    assert m.passes[-1] == "outline"
    assert irloom.parse(irloom.show(m)) == m
    with pytest.raises(PipelineError, match="no pass 'outlin'"):
        driver.rewritten(model[0], after="outlin")


def test_of_two_builds_of_one_key_at_once_one_waits_for_the_other(tmp_path):
    save_model(llama_config(), tmp_path / "model")
    builders, waiters = [], []
    someone_waits = threading.Event()

    def build(who: str) -> Path:
        def report(stage: str, done: int, total: int) -> None:
            if stage == "waiting for another build":
                waiters.append(who)
                someone_waits.set()
            elif stage == "trace" and who not in builders:
                builders.append(who)
                assert someone_waits.wait(60), "the other build neither waits nor builds"

        return driver.engine_for(tmp_path / "model", "reference", None, report)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(build, ["one", "other"])
    assert one == other and is_engine(one)
    assert sorted(builders + waiters) == ["one", "other"] and len(builders) == 1
