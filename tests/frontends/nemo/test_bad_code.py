"""Pickles and YAML that want to run code: nothing runs, and the error says what they wanted."""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 (written here, to be refused)
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from irloom.frontends.nemo import open_path
from irloom.frontends.nemo.unpickle import Inert, load_pickle
from irloom.ir.errors import CheckpointError
from tests.frontends.nemo.plain import LLAMA, llama_tensors, write_bridge, write_nemo1

SYSTEM = os.system  # noqa: TID251 (what the files here want to call)


class Call:
    """An object whose pickle calls ``function`` when it is opened."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def named(module: str, name: str, *, protocol: int = 2) -> bytes:
    """A pickle that calls ``module.name`` with one text, whether such a function is here or not."""
    if protocol < 4:
        return f"c{module}\n{name}\n(S'x'\ntR.".encode()
    text = [b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name, "x")]
    return b"\x80\x04" + text[0] + text[1] + b"\x93" + text[2] + b"\x85R."


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "function",
    ["os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec", "builtins.getattr",
     "__builtin__.eval", "subprocess.Popen", "commands.getoutput", "importlib.import_module",
     "runpy.run_path", "pickle.loads", "cPickle.loads", "marshal.loads", "types.FunctionType",
     "builtins.__import__", "operator.attrgetter", "webbrowser.open", "shutil.rmtree", "pty.spawn",
     "code.interact", "sys.exit"],
)  # fmt: skip
def test_a_pickle_may_not_call(function, protocol, tmp_path):
    module, _, name = function.rpartition(".")
    data = named(module, name, protocol=protocol)
    if function == "types.FunctionType":  # a class of Python's that training code may name: inert
        assert isinstance(load_pickle(data, tmp_path), Inert)
        return
    with pytest.raises(CheckpointError, match="wants to call") as caught:
        load_pickle(data, tmp_path)
    assert "nothing was run" in caught.value.hint


@pytest.mark.parametrize(
    "function", ["torch.hub.load", "numpy.load", "torch.storage._load_from_bytes", "site_x.f"]
)
def test_what_a_library_could_do_is_inert(function, tmp_path):
    module, _, name = function.rpartition(".")
    found = load_pickle(named(module, name), tmp_path)
    assert isinstance(found, Inert)
    assert found.kind == function


def test_nothing_large_is_made_by_a_small_pickle(tmp_path):
    assert load_pickle(pickle.dumps(Call(bytes, 1 << 40)), tmp_path) == b""
    with pytest.raises(CheckpointError):
        load_pickle(pickle.dumps(Call(bytearray, 1 << 40)), tmp_path)
    with pytest.raises(CheckpointError):
        load_pickle(pickle.dumps(Call(list, range(1 << 40))), tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"\x80\x04.", b"(" * 1000, b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60)]
)
def test_a_damaged_pickle_is_an_error_of_the_file(data, tmp_path):
    with pytest.raises(CheckpointError, match="damaged"):
        load_pickle(data, tmp_path)


def test_weights_that_call_are_refused_and_nothing_runs(tmp_path):
    mark = tmp_path / "ran"
    path = write_nemo1(tmp_path / "model")
    torch.save({"model.x": Call(SYSTEM, f"touch {mark}")}, path / "model_weights.ckpt")
    with pytest.raises(CheckpointError, match=r"wants to call `posix\.system`"):
        open_path(path)
    assert not mark.exists()


@pytest.mark.parametrize("file", [".metadata", "common.pt"])
def test_so_are_the_pickles_of_a_distributed_checkpoint(file, tmp_path):
    mark, folder = tmp_path / "ran", write_bridge(tmp_path, llama_tensors(), LLAMA)
    call = Call(SYSTEM, f"touch {mark}")
    if file == ".metadata":
        (folder / file).write_bytes(pickle.dumps(call))
    else:
        (folder / "run_config.yaml").unlink()
        torch.save({"args": call}, folder / file)
    with pytest.raises(CheckpointError, match="wants to call"):
        open_path(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object/new:subprocess.Popen [['touch', '{}']]",
        "!custom {{}}",
    ],
)
def test_yaml_that_makes_objects_is_refused(tag, tmp_path):
    mark, path = tmp_path / "ran", write_nemo1(tmp_path / "model")
    with (path / "model_config.yaml").open("a") as file:
        file.write(f"\nextra: {tag.format(mark)}\n")
    with pytest.raises(CheckpointError, match="wants to make an object"):
        open_path(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "my_code.Model", "megatron", "nemo;x.y", "../nemo.x"]
)
def test_a_target_that_is_not_nemos_is_refused_and_not_imported(target, tmp_path):
    write_bridge(tmp_path, llama_tensors(), {**LLAMA, "_target_": target})
    with pytest.raises(CheckpointError, match=r"none of NeMo's or Megatron's"):
        open_path(tmp_path)


@pytest.mark.parametrize("target", ["os.system", "evil.silu", "torch.nn.functional.mish", 3, ["a"], {"b": 1}])
def test_an_activation_that_is_not_known_is_refused(target, tmp_path):
    write_bridge(tmp_path, llama_tensors(), {**LLAMA, "activation_func": {"_target_": target}})
    with pytest.raises(CheckpointError, match="is not known"):
        open_path(tmp_path)


def test_targets_elsewhere_in_a_config_are_not_looked_at(tmp_path):
    optim = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    write_bridge(tmp_path, llama_tensors(), {**LLAMA, "optim": optim, "init_method": optim})
    open_path(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_shared_yaml_that_would_unfold_without_end_is_read_in_no_time(tmp_path):
    path = write_nemo1(tmp_path / "model")
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    with (path / "model_config.yaml").open("a") as file:
        file.write("\n".join(["", *lines, "optim: *a59", ""]))
    open_path(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "a: [", "- 1\n- 2", "a: *b", "\tx: 1", "a: 1\n---\nb: 2\n"])
def test_yaml_that_is_none_is_refused(text, tmp_path):
    path = write_nemo1(tmp_path / "model")
    (path / "model_config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"`model_config.yaml` is (not YAML|no mapping)"):
        open_path(path)


def test_a_compressed_entry_in_a_saved_file_is_refused(tmp_path):
    path: Path = write_nemo1(tmp_path / "model")
    saved = path / "model_weights.ckpt"
    entries = io.BytesIO(saved.read_bytes())
    with zipfile.ZipFile(entries) as old, zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info.filename))
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        open_path(path)
