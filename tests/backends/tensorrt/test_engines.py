"""Engine directories of the target: weights once, plans reused, and nothing opened that does not fit."""

import hashlib
import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import irloom
from irloom.backends.artifact import MANIFEST, SEAL, EngineReader
from irloom.backends.core import Limits, backend
from irloom.backends.gpu import Gpu
from irloom.backends.tensorrt import library, opening
from irloom.backends.tensorrt.backend import TensorRTBackend, cut_well
from irloom.backends.tensorrt.engine import TensorRTEngine
from irloom.backends.tensorrt.executor import TorchExecutor
from irloom.backends.tensorrt.forms import value_of
from irloom.backends.tensorrt.library import LibraryMissing
from irloom.backends.tensorrt.network import Tensor
from irloom.backends.tensorrt.opening import program_of
from irloom.backends.tensorrt.weight_store import Weights
from irloom.driver import Choice, passes_of
from irloom.ir.checkpoint import SafetensorsCheckpoint
from irloom.ir.errors import EngineMismatch, PipelineError, RequestError
from irloom.passes import run_pipeline
from irloom.zoo.serve import Script, serve
from tests.tiny import llama_config, save_model

pytestmark = pytest.mark.tensorrt


def half(folder: Path, seed: int) -> Path:
    """A checkpoint in bf16, the element that the target computes in."""
    save_model(llama_config(), folder, seed).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    try:
        library.load()
    except LibraryMissing as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "irloom" / "tensorrt"


@pytest.fixture(scope="module")
def model(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half(tmp_path_factory.mktemp("model") / "llama", seed=0)


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    return irloom.compile(model, target="tensorrt", out=model.parent / "engine")


def changed(engine: Path, to: Path, **facts: Any) -> EngineReader:
    """A copy whose manifest says other facts, sealed as if it had been written so."""
    shutil.copytree(engine, to)
    manifest = json.loads((to / MANIFEST).read_text())
    for name, value in facts.items():
        manifest[name] |= value
    text = json.dumps(manifest).encode()
    (to / MANIFEST).write_bytes(text)
    (to / SEAL).write_text(hashlib.sha256(text).hexdigest() + "\n")
    return EngineReader(to)


class TestWhatIsBuilt:
    def test_weights_stay_in_the_checkpoint_and_plans_have_none(self, engine, model):
        reader = EngineReader(engine)
        checkpoint = model / "model.safetensors"
        assert {link.file for link in reader.manifest.links.values()} == {str(checkpoint)}
        linked = sum(link.stop - link.start for link in reader.manifest.links.values())
        assert linked > 0.95 * checkpoint.stat().st_size
        assert reader.file("weights.safetensors").stat().st_size < 4096
        secret = checkpoint.read_bytes()[-64:]
        plans = sorted(p for p in engine.rglob("*.plan"))
        assert plans and not any(secret in p.read_bytes() for p in plans)

    def test_weights_are_read_as_networks_take_them(self, engine, model):
        from safetensors.torch import load_file

        reader = EngineReader(engine)
        program, _ = program_of(reader, Limits())
        weights, stored = Weights(reader), load_file(model / "model.safetensors")
        found = {t.name: weights(t) for s in program.segments for t in s.network.weights}
        assert torch.equal(found["embed_tokens_weight"], stored["model.embed_tokens.weight"])
        assert len(found) == len(program.weights) > 20

    def test_four_bits_take_half_a_byte(self, model, tmp_path):
        passes = list(TensorRTBackend.pipeline)
        passes.insert(-2, "quantize(int4, skip='lm_head')")
        made = irloom.compile(model, target="tensorrt", pipeline=", ".join(passes), out=tmp_path / "engine")
        reader = EngineReader(made)
        program, _ = program_of(reader, Limits())
        weights = Weights(reader)
        four = [t for s in program.segments for t in s.network.weights if str(t.elem) == "i4"]
        entries = sum(weights(t).numel() for t in four)
        assert four and reader.file("weights.safetensors").stat().st_size < 0.75 * entries
        checkpoint = SafetensorsCheckpoint(model)
        for t in four:
            assert torch.equal(weights(t), value_of(program.weights[t.name], checkpoint, program.module))

    def test_the_log_of_every_build_is_a_part(self, engine):
        reader = EngineReader(engine)
        plans = [name for name in reader.manifest.parts if name.startswith("plans/")]
        log = reader.read_text("build.log")
        assert len(re.findall(r"^plan: \d+ bytes in", log, re.M)) == len(plans)
        assert all(f"== {Path(name).stem}" in log for name in plans)

    def test_a_fine_tune_takes_the_plans_that_are_there(self, engine, cache, tmp_path):
        before = {p.name: p.stat().st_mtime_ns for p in cache.glob("*.plan")}
        stages: list[str] = []
        tuned = irloom.compile(
            half(tmp_path / "tuned", seed=1),
            target="tensorrt",
            out=tmp_path / "engine",
            progress=lambda stage, done, total: stages.append(stage),
        )
        assert {p.name: p.stat().st_mtime_ns for p in cache.glob("*.plan")} == before
        assert not [s for s in stages if s.startswith("plan ")]
        parts = [EngineReader(e).manifest.parts for e in (engine, tuned)]
        assert len({str([p for n, p in sorted(x.items()) if n.startswith("plans/")]) for x in parts}) == 1

    def test_cut_at_its_layers_equal_layers_share_a_plan(self, model, tmp_path):
        made = irloom.compile(model, target="tensorrt", out=tmp_path / "engine", cut="layer")
        segments = EngineReader(made).read_json("segments.json")["segments"]
        assert len(segments) > len({s["plan"] for s in segments}) == len(list(made.rglob("*.plan")))
        assert "--cut layer" in EngineReader(made).manifest.command

    @pytest.mark.parametrize(("layers", "cut"), [(2, "whole"), (4, "layer")])
    def test_a_deep_model_is_cut_at_its_layers_since_most_of_them_are_one_plan(self, layers, cut):
        from irloom.frontends.hf.selfcheck import import_tiny

        traced, _ = import_tiny(llama_config(num_hidden_layers=layers))
        m, _ = run_pipeline(traced, passes_of(Choice("tensorrt")))
        assert cut_well(m, None)[1] == cut
        assert cut_well(m, "whole")[1] == "whole"

    def test_no_split_takes_a_model_that_is_expressed_whole(self, model, tmp_path):
        made = irloom.compile(model, target="tensorrt", out=tmp_path / "engine", split=False)
        assert EngineReader(made).manifest.settings["fallbacks"] == {}
        assert "--no-split" in EngineReader(made).manifest.command


class TestWhatIsOpened:
    @pytest.mark.parametrize("layout", ["linear", "paged"])
    def test_its_weights_and_program_compute_what_the_reference_does(self, model, tmp_path, layout):
        """Networks in torch over what the engine stores, which a plan gets in the same way."""
        from transformers import AutoModelForCausalLM

        passes = "canonicalize, raise, canonicalize, outline, gather-logits, kv-cache, "
        sizes = "max_seqs=8, max_tokens=32"
        made = irloom.compile(
            model,
            target="tensorrt",
            pipeline=f"{passes} kv-plan(layout={layout}, {sizes})",
            out=tmp_path / "engine",
        )
        limits = Limits(max_tokens=32, max_seqs=8, max_context=64)
        reader = EngineReader(made)
        program, context = program_of(reader, limits)
        assert bool(program.outside) is (layout == "paged")
        weights = Weights(reader)
        types = {t.name: t for s in program.segments for t in s.network.weights}
        executors = [TorchExecutor(s.network, lambda name: weights(types[name])) for s in program.segments]
        mine = TensorRTEngine(program, executors, weights.of_body, limits, context, device="cpu")
        tokens = torch.randint(2, 320, (24,), generator=torch.Generator().manual_seed(0))
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with torch.inference_mode():
            expected = whole(tokens[None]).logits[0]
        served = serve(mine, [Script(tokens, 9, expected), Script(tokens[:14], 12, expected[:14])])
        assert served.error < 0.05, served.where  # eight bits of bf16, through four layers


class Stripped:
    """What a plan that was stripped asks for, and what it is given: the part of a refitter that is used."""

    def __init__(self, wants: dict[str, int]) -> None:
        self.wants, self.given = wants, dict[str, Any]()

    def get_all_weights(self) -> list[str]:
        return [*self.wants, "a constant"]

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self.given[name] = weights
        return weights.size == self.wants[name]

    def get_missing_weights(self) -> list[str]:
        return sorted(set(self.wants) - set(self.given))

    def refit_cuda_engine(self) -> bool:
        return not self.get_missing_weights()


class TestRefit:
    """No plan can be refitted where there is no driver; what it would be given can be seen."""

    @pytest.fixture
    def own(self, engine) -> dict[str, Tensor]:
        program, _ = program_of(EngineReader(engine), Limits())
        weights = [t for s in program.segments for t in s.network.weights]
        return {f"w{i}": t for i, t in enumerate(weights)}

    def test_every_weight_is_given_once_in_its_element(self, engine, own):
        reader, trt = EngineReader(engine), library.load().trt
        plan = Stripped({name: math.prod(t.dims) for name, t in own.items()})
        opening.refit(reader, plan, trt, own, Weights(reader))
        assert plan.given.keys() == own.keys()
        assert {w.dtype for w in plan.given.values()} == {trt.DataType.BF16}

    def test_a_weight_that_the_plan_lacks_or_does_not_take_is_told(self, engine, own):
        reader, trt = EngineReader(engine), library.load().trt
        with pytest.raises(EngineMismatch, match="lacks weights that the engine does not have: other"):
            opening.refit(reader, Stripped({"other": 1}), trt, own, Weights(reader))
        with pytest.raises(EngineMismatch, match="does not take embed_tokens_weight"):
            opening.refit(reader, Stripped({"w0": 7}), trt, own, Weights(reader))


class TestWhatIsRefused:
    @pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
    def test_an_engine_with_any_byte_edited(self, engine, tmp_path, count):
        copy = tmp_path / "engine"
        shutil.copytree(engine, copy)
        files = sorted(p for p in copy.rglob("*") if p.is_file())
        sizes = [f.stat().st_size for f in files]
        draw, refused = random.Random(count), 0
        for i in range(count):
            # every file in turn, then wherever a byte of the directory falls
            file = files[i] if i < len(files) else draw.choices(files, sizes)[0]
            before = file.read_bytes()
            at, value = draw.randrange(len(before)), draw.randrange(1, 256)
            file.write_bytes(before[:at] + bytes([before[at] ^ value]) + before[at + 1 :])
            with pytest.raises(EngineMismatch):
                EngineReader(copy)  # all there is before a plan is deserialized
            file.write_bytes(before)
            refused += 1
        assert refused == count
        EngineReader(copy)

    def test_another_version_of_the_library(self, engine, tmp_path):
        loaded = library.load()
        other = changed(engine, tmp_path / "e", versions={loaded.name: "1.5.0.3"})
        with pytest.raises(EngineMismatch) as caught:
            backend("tensorrt").open(other, Limits())
        assert f"{loaded.name} 1.5.0.3 when built, {loaded.version} here" in caught.value.message
        assert caught.value.hint.startswith("build it again: irloom compile ")

    def test_no_library(self, engine, monkeypatch):
        monkeypatch.setattr(library, "_PLACES", (("tensorrt", "tensorrt_that_is_not_there", ""),))
        library.load.cache_clear()
        try:
            with pytest.raises(EngineMismatch) as caught:
                backend("tensorrt").open(EngineReader(engine), Limits())
            assert "tensorrt_that_is_not_there is not installed" in caught.value.message
            assert "pip install tensorrt" in caught.value.message
            lacks = backend("tensorrt").lacks()
            assert lacks is not None and "pip install tensorrt" in lacks
        finally:
            library.load.cache_clear()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
    def test_a_machine_without_a_gpu(self, engine):
        with pytest.raises(EngineMismatch) as caught:
            backend("tensorrt").open(EngineReader(engine), Limits())
        assert "runs on an NVIDIA GPU" in caught.value.message
        assert "torch sees none here" in caught.value.message

    def test_another_gpu(self, engine, monkeypatch):
        monkeypatch.setattr(opening, "gpu", lambda: Gpu("NVIDIA H100", "9.0"))
        with pytest.raises(EngineMismatch) as caught:
            backend("tensorrt").open(EngineReader(engine), Limits())
        assert (
            "built for a GPU of compute capability 8.0, 8.6, 8.9, 12.0, "
            "here is NVIDIA H100 (compute capability 9.0)" in caught.value.message
        )
        assert "irloom compile" in caught.value.hint

    def test_limits_past_the_profiles(self, engine):
        with pytest.raises(RequestError) as caught:
            program_of(EngineReader(engine), Limits(max_tokens=4096))
        assert "max_tokens is 4,096, but the engine's profiles end at 512" in caught.value.message
        assert "--with 'kv-plan(layout=linear, max_tokens=4096, " in caught.value.hint

    def test_a_program_that_this_irloom_lowers_otherwise(self, engine, tmp_path):
        copy = tmp_path / "engine"
        shutil.copytree(engine, copy)
        text = (copy / "lowered.txt").read_text() + "\n"
        (copy / "lowered.txt").write_text(text)
        part = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text.encode())}
        reader = changed(copy, tmp_path / "other", parts={"lowered.txt": part})
        with pytest.raises(EngineMismatch, match="lowered by another irloom"):
            program_of(reader, Limits())

    def test_a_split_where_none_is_wanted(self, model, tmp_path):
        with pytest.raises(PipelineError) as caught:
            irloom.compile(
                model,
                target="tensorrt",
                pipeline="canonicalize, raise, canonicalize, outline, gather-logits, kv-cache, kv-plan",
                out=tmp_path / "engine",
                split=False,
            )
        assert "tensorrt cannot express kv_append (4 of them), nor paged_attention" in caught.value.message
        assert caught.value.hint == "without --no-split such ops run their reference body"
        assert not (tmp_path / "engine").exists()
