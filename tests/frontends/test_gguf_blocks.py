"""Every type of block in a GGUF file: decoded as the package does, kept where it is integers and a scale."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from irloom.frontends.gguf import read_header
from irloom.frontends.gguf.tensors import GGUFTensors
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.weights import Quantize, Tensor, materialize

UNKNOWN = {"Q8_1", "Q8_K", "Q1_0"}
"""Types that the package has a size of, and no code for."""

KINDS = [kind for kind in gguf.GGML_QUANT_SIZES if kind.name not in {"F32", "F16", "BF16", "F64"}]
BLOCKS = [kind for kind in KINDS if not kind.name.startswith("I") or kind.name.startswith("IQ")]
DIMS = (6, 1024)


def write(path: Path, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A file with one tensor of random blocks whose scales are small numbers; its bytes."""
    entries, nbytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(5).integers(0, 256, (DIMS[0], DIMS[1] // entries * nbytes), dtype=np.uint8)
    blocks = data.reshape(-1, nbytes)
    for at in {"TQ1_0": [52], "TQ2_0": [64], "Q6_K": [208], "Q3_K": [108], "Q2_K": [80, 82]}.get(
        kind.name, [0, 2] if kind.name in {"Q4_1", "Q5_1", "Q4_K", "Q5_K"} else [0]
    ):
        if kind.name not in {"MXFP4", "NVFP4", "IQ1_M"}:
            blocks[:, at : at + 2] = np.array([0.125], np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data


def opened(path: Path) -> GGUFTensors:
    return GGUFTensors(read_header(path))


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_blocks_are_decoded_as_the_package_does(tmp_path, kind):
    path = tmp_path / "m.gguf"
    data = write(path, kind)
    tensors = opened(path)
    if kind.name in UNKNOWN:
        with pytest.raises(CheckpointError) as refused:
            tensors.check()
        assert str(refused.value) == (
            f"{path}: `w` is {kind.name}, which the gguf package cannot decode\n"
            "hint: pip install -U gguf, or convert the file to another type"
        )
        return
    tensors.check()
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(data, kind))
    assert torch.equal(tensors.read("w").nan_to_num(), wanted.nan_to_num())
    assert tensors.dims("w") == DIMS


@pytest.mark.parametrize(
    ("name", "base", "group"),
    [
        ("Q8_0", "i8", 32), ("Q5_0", "i8", 32), ("Q4_0", "i4", 32), ("Q4_0", "i8", 32), ("IQ4_NL", "i8", 32),
        ("TQ1_0", "i4", 256), ("TQ2_0", "i4", 32), ("Q4_0", "i4", 16),
    ],
)  # fmt: skip
def test_integers_times_a_scale_are_kept(tmp_path, name, base, group):
    """Also in a scheme with more bits or smaller groups than the file's."""
    write(tmp_path / "m.gguf", gguf.GGMLQuantizationType[name])
    tensors = opened(tmp_path / "m.gguf")
    quant = Quant("q", ELEMS[base], group, ELEMS["f16"])
    kept = materialize(Quantize(Tensor("w"), quant), tensors)
    assert isinstance(kept, QuantizedTensor)
    assert torch.equal(kept.dequantize(), tensors.read("w"))


@pytest.mark.parametrize(
    ("name", "base", "group"),
    [("Q8_0", "i4", 32), ("Q5_0", "i4", 32), ("Q4_0", "i4", 64), ("Q4_K", "i4", 32)],
)
def test_others_are_rounded_to(tmp_path, name, base, group):
    write(tmp_path / "m.gguf", gguf.GGMLQuantizationType[name])
    quant = Quant("q", ELEMS[base], group, ELEMS["f16"])
    assert opened(tmp_path / "m.gguf").read_quantized("w", quant) is None


def test_a_large_tensor_is_decoded_some_blocks_at_a_time(tmp_path, monkeypatch):
    write(tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q4_K)
    whole = opened(tmp_path / "m.gguf").read("w")
    monkeypatch.setattr("irloom.frontends.gguf.tensors._CHUNK", 300)
    assert torch.equal(opened(tmp_path / "m.gguf").read("w"), whole)
