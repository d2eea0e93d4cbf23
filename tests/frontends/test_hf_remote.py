"""A model whose code lies beside its config.json runs where the user trusts that code, and only there."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import irloom
from irloom import driver
from irloom.frontends.hf import trace_hf
from irloom.frontends.hf.checkpoint import read_config
from irloom.frontends.hf.skeleton import causal_class
from irloom.ir.errors import CheckpointError, TraceError
from tests.tiny import llama_config, save_model, tokenizer

CODE = Path(__file__).parent / "custom"
AUTO_MAP = {
    "AutoConfig": "configuration_pebble.PebbleConfig",
    "AutoModelForCausalLM": "modeling_pebble.PebbleForCausalLM",
}
GREEDY = irloom.SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Traces, engines and the library's copies of code stay out of the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.utils.hub.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", sys.path[:])
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def pebble(tmp_path) -> Path:
    """A directory with config.json and Python files, no weights."""
    folder = tmp_path / "pebble"
    shutil.copytree(CODE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config(folder, model_type="pebble", auto_map=AUTO_MAP, transformers_version="5.17.0")
    return folder


def config(folder: Path, **fields) -> None:
    file = folder / "config.json"
    said = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(said | fields))


def changed(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def refusal(folder: Path, trust: bool = True) -> str:
    with pytest.raises(TraceError) as refused:
        irloom.trace(folder, trust_remote_code=trust)
    return str(refused.value).replace(str(folder.resolve()), "PATH")


def test_a_trusted_model_is_traced_checked_and_made_of_the_same_ops_as_any(pebble):
    module = irloom.trace(pebble, trust_remote_code=True)
    names = [node.op.name for node in module.main.nodes]
    assert names.count("attention") == 2
    assert names.count("rms_norm") == 5
    assert "modeling_pebble.py:" in irloom.show(module)
    raised, _ = irloom.run_pipeline(module, "canonicalize, raise, outline")
    assert "rope(" in irloom.show(raised)


def test_it_answers_as_the_library_does(pebble):
    model = weights_for(pebble)
    llm = irloom.LLM(pebble, trust_remote_code=True, threads=1)
    prompt = "once upon a time"
    ids = torch.tensor([llm.tokenizer.encode(prompt).ids])
    with torch.no_grad():
        for _ in range(12):
            best = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], dim=1)
    (answer,) = llm.generate([prompt], GREEDY)
    assert answer.token_ids == ids[0, -12:].tolist()
    with pytest.raises(TraceError, match="runs code of its own"):
        irloom.LLM(pebble, threads=1)  # the engine that is now in the cache is one of trusted code


def weights_for(folder: Path) -> nn.Module:
    """Seeded weights and a tokenizer in ``folder``; the library's own model of them."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        made = read_config(folder, trust=True)
        model = causal_class(made)._from_config(made).eval()
        for param in model.parameters():
            if param.ndim > 1:
                param.data.normal_(0, 0.15)
    before = (folder / "config.json").read_text()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(before)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


def unchecked(source, **options) -> str:
    """The traced program as text."""
    return irloom.show(trace_hf(source, check=False, **options))


ENTRIES = {
    "trace": lambda folder, out: irloom.trace(folder),
    "compile": lambda folder, out: irloom.compile(folder, out=out),
    "LLM": lambda folder, out: irloom.LLM(folder),
    "dump": lambda folder, out: driver.rewritten(folder),
    "read_config": lambda folder, out: read_config(folder),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_without_the_flag_it_is_refused_and_nothing_runs(entry, pebble, tmp_path):
    ran = tmp_path / "ran"
    for file in pebble.glob("*.py"):
        file.write_text(f"open({str(ran)!r}, 'w')\n{file.read_text()}")
    with pytest.raises(TraceError) as refused:
        entry(pebble, tmp_path / "out")
    message = str(refused.value)
    assert "runs code of its own: configuration_pebble.py, modeling_pebble.py" in message
    assert "hint: read the code; if you trust it, give --trust-remote-code" in message
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


def test_what_the_library_knows_itself_needs_no_code(tmp_path):
    save_model(llama_config(num_hidden_layers=1), tmp_path)
    config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('ran')")
    assert "attention" in unchecked(tmp_path)
    with pytest.raises(TraceError, match=r"modeling_evil\.py does not import: SystemExit: ran"):
        irloom.trace(tmp_path, trust_remote_code=True)


def test_code_may_take_a_config_of_the_library(tmp_path):
    """Its class serves this directory; the library's own model keeps every other one."""
    save_model(llama_config(), tmp_path)
    config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_loud.LoudLlama"})
    (tmp_path / "modeling_loud.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        "class LoudLlama(LlamaForCausalLM):\n"
        "    def forward(self, **inputs):\n"
        "        out = super().forward(**inputs)\n"
        "        out.logits = out.logits * 3.5\n"
        "        return out\n"
    )
    assert "3.5" in irloom.show(irloom.trace(tmp_path, trust_remote_code=True))
    assert "3.5" not in unchecked(tmp_path)
    assert causal_class(LlamaConfig()) is LlamaForCausalLM


def test_a_trace_is_made_again_when_the_code_changes(pebble):
    before = unchecked(pebble, trust_remote_code=True)
    changed(pebble, "rotation.py", "a * angles.cos() - b", "a * angles.cos() * 1.75 - b")
    assert "1.75" in unchecked(pebble, trust_remote_code=True)
    changed(pebble, "rotation.py", " * 1.75", "")
    assert unchecked(pebble, trust_remote_code=True) == before


def test_an_error_names_the_line_in_the_users_file(pebble):
    line = "        x = x + self.attention"
    changed(pebble, "modeling_pebble.py", line, f"        if x.sum() > 0:\n            x = -x\n{line}")
    message = refusal(pebble)
    assert "`if x.sum() > 0:` depends on the values of a tensor" in message
    assert '@irloom.replaces("PebbleLayer") on a function (self, x, positions, mask, cache)' in message
    assert re.search(r"in layers\.0 \(PebbleLayer\), PATH/modeling_pebble\.py:\d+\n", message)


def test_a_missing_dependency_is_named_before_anything_runs(pebble, tmp_path):
    text = (pebble / "modeling_pebble.py").read_text()
    ran = tmp_path / "ran"
    (pebble / "modeling_pebble.py").write_text(f"open({str(ran)!r}, 'w')\nimport no_such_thing\n{text}")
    message = refusal(pebble)
    assert message.startswith("PATH/modeling_pebble.py needs no_such_thing, not installed here")
    assert message.endswith("hint: pip install no_such_thing")
    assert not ran.exists()


BROKEN = {
    "raise ValueError('no luck')": "ValueError: no luck",
    "raise SystemExit(3)": "SystemExit: 3",
    "from transformers import NoSuchName": "ImportError: cannot import name 'NoSuchName'",
    "def f(:": "SyntaxError: invalid syntax",
}


@pytest.mark.parametrize("line", BROKEN)
def test_code_that_fails_on_import_is_an_error_at_its_line(line, pebble):
    text = (pebble / "modeling_pebble.py").read_text()
    (pebble / "modeling_pebble.py").write_text(f'"""Broken."""\n\n{line}\n{text}')
    message = refusal(pebble)
    assert message.startswith(f"PATH/modeling_pebble.py does not import: {BROKEN[line]}")
    assert "hint: it was written for transformers 5.17.0" in message
    assert message.endswith("in PATH/modeling_pebble.py:3")


def test_a_class_that_fails_on_its_config_is_an_error(pebble):
    changed(pebble, "modeling_pebble.py", "self.post_init()", "raise KeyError('depth')")
    message = refusal(pebble)
    assert message.startswith("PebbleForCausalLM is not built from its config: KeyError: 'depth'")


MAPS = {
    "other/repo--modeling_x.X": "is `other/repo--modeling_x.X`, code of another repository",
    "../evil.Evil": "is `../evil.Evil`, not FILE.CLASS",
    "/tmp/evil.Evil": "is `/tmp/evil.Evil`, not FILE.CLASS",
    "modeling_pebble": "is `modeling_pebble`, not FILE.CLASS",
    "modeling_absent.X": "but there is no modeling_absent.py",
    "modeling_pebble.NoSuchClass": "AttributeError",
}


@pytest.mark.parametrize("reference", MAPS)
def test_what_auto_map_names_is_in_the_directory_or_refused(reference, pebble):
    config(pebble, auto_map=AUTO_MAP | {"AutoModelForCausalLM": reference})
    assert MAPS[reference] in refusal(pebble)


def test_a_map_without_a_language_model_is_refused(pebble):
    config(pebble, auto_map={"AutoConfig": AUTO_MAP["AutoConfig"]})
    assert "`pebble` has no causal language model" in refusal(pebble)


def test_a_config_that_its_own_class_refuses_is_a_checkpoint_error(pebble):
    line = "    logit_scale: float = 1.5"
    raises = "    def __post_init__(self, **kwargs):\n        raise ValueError('no such pebble')"
    changed(pebble, "configuration_pebble.py", line, f"{line}\n\n{raises}")
    with pytest.raises(CheckpointError, match="PebbleConfig does not take it: ValueError: no such pebble"):
        irloom.trace(pebble, trust_remote_code=True)


class Registered(LlamaForCausalLM):
    def forward(self, *args: Any, **inputs: Any) -> Any:
        out: Any = super().forward(*args, **inputs)
        out.logits = out.logits + 0.25
        return out


class RegisteredConfig(LlamaConfig):
    model_type = "registered"


Registered.config_class = RegisteredConfig


def test_a_model_that_registers_itself_with_the_library_needs_no_flag(tmp_path, monkeypatch):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {})
    AutoConfig.register("registered", RegisteredConfig)
    AutoModelForCausalLM.register(RegisteredConfig, Registered)
    sizes = llama_config().to_dict() | {"model_type": "registered"}
    save_model(RegisteredConfig(**{k: v for k, v in sizes.items() if k != "model_type"}), tmp_path)
    assert "0.25" in irloom.show(irloom.trace(tmp_path))
    assert "0.25" in unchecked(AutoConfig.from_pretrained(tmp_path))
