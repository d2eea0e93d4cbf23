"""Weights that a checkpoint stores quantized: values as their makers define them, kept where they can be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from irloom.frontends.core import TraceOptions, frontend_of
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.weights import Quantize, Tensor, materialize

F8 = torch.float8_e4m3fn
UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, torch.Tensor]


def llama(path: Path, change: Callable[[Tensors], None], quantization: dict[str, Any]) -> Tensors:
    """Save a tiny Llama, its file after ``change``, its config with ``quantization``; the plain tensors."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    file = path / "model.safetensors"
    plain = load_file(file)
    stored = dict(plain)
    change(stored)
    save_file({n: t.contiguous() for n, t in stored.items()}, file)
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**fields, "quantization_config": quantization}))
    return plain


def opened(path: Path) -> Any:
    return frontend_of(path).checkpoint(path, TraceOptions())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(path)
    return str(refused.value).replace(str(path), "PATH")


def projections(tensors: Tensors) -> list[str]:
    return [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]


def fp8(
    block: tuple[int, int], suffix: str = "_scale_inv", wanted: Tensors | None = None
) -> Callable[[Tensors], None]:
    """Round every projection to FP8 with a scale for each ``block``; 0 is the whole dim.

    The rounded weights go into ``wanted``.
    """

    def change(tensors: Tensors) -> None:
        for module in projections(tensors):
            weight = tensors[f"{module}.weight"]
            rows, columns = (step or size for step, size in zip(block, weight.shape, strict=True))
            scales = torch.empty(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
            values = torch.empty_like(weight, dtype=F8)
            for i in range(scales.shape[0]):
                for j in range(scales.shape[1]):
                    at = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                    scales[i, j] = weight[at].abs().max() / 448
                    values[at] = (weight[at] / scales[i, j]).to(F8)
            if wanted is not None:
                spread = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
                wanted[f"{module}.weight"] = values.float() * spread[: len(weight), : weight.shape[1]]
            tensors |= {f"{module}.weight": values, f"{module}.weight{suffix}": scales}

    return change


FP8 = {"quant_method": "fp8", "weight_block_size": [32, 48], "activation_scheme": "dynamic"}


def test_blocks_of_fp8_are_read_as_the_library_dequantizes_them(tmp_path):
    """DeepSeek V3's form."""
    llama(tmp_path, fp8((16, 32)), {**FP8, "weight_block_size": [16, 32]})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=FineGrainedFP8Config(weight_block_size=(16, 32), dequantize=True),
    )
    found = opened(tmp_path)
    for name, wanted in theirs.state_dict().items():
        torch.testing.assert_close(found.read(name), wanted, msg=name)


@pytest.mark.parametrize(
    ("block", "method"),
    [
        ((0, 0), "modelopt"),
        ((1, 0), "fbgemm_fp8"),
        ((1, 0), "compressed-tensors"),
        ((1, 32), "fp8"),
        ((40, 32), "fp8"),
        ((40, 48), "fp8"),
    ],
    ids=[
        "of the tensor",
        "of each row",
        "of each row, too",
        "of each group",
        "of blocks",
        "of blocks that do not divide",
    ],
)
def test_other_scales_of_fp8(tmp_path, block, method):
    wanted: Tensors = {}

    def change(tensors: Tensors) -> None:
        fp8(block, "_scale", wanted)(tensors)
        for module in projections(tensors):
            scales = tensors[f"{module}.weight_scale"]
            tensors[f"{module}.weight_scale"] = scales.reshape(-1) if method == "modelopt" else scales
            tensors[f"{module}.input_scale"] = torch.ones(1)

    plain = llama(tmp_path, change, {"quant_method": method, "weight_block_size": list(block)})
    found = opened(tmp_path)
    assert set(found.names()) == set(plain)
    for name, tensor in {**plain, **wanted}.items():
        torch.testing.assert_close(found.read(name), tensor)
    assert found.stored(f"{UP}.weight") is None
    assert found.elem(f"{UP}.weight").name == "f32"
    assert found.stored("model.norm.weight") is not None
    rows, group = block
    scheme = Quant("f8", ELEMS["f8e4m3"], group, ELEMS["f32"], rows=rows)
    if group == 48:
        return  # which divides no row of 64
    kept = found.read_quantized(f"{UP}.weight", scheme)
    assert torch.equal(kept.dequantize(), found.read(f"{UP}.weight"))
    other = replace(scheme, rows=16 if rows != 16 else 1)
    assert found.read_quantized(f"{UP}.weight", other) is None


def test_rows_are_read_without_the_others(tmp_path, monkeypatch):
    llama(tmp_path, fp8((32, 48)), FP8)
    whole = opened(tmp_path).read(f"{UP}.weight")
    monkeypatch.setattr("irloom.ir.checkpoint.BLOCK", 64 * 4 * 7)
    blocks = list(opened(tmp_path).blocks(f"{UP}.weight", slice(5, 90)))
    assert len(blocks) == 13
    assert torch.equal(torch.cat(blocks), whole[5:90])


def test_integers_with_zeros_that_are_not_packed(tmp_path):
    def change(tensors: Tensors) -> None:
        tensors[f"{UP}.weight"] = torch.arange(96 * 64).reshape(96, 64).remainder(255).sub(127).to(torch.int8)
        tensors[f"{UP}.weight_scale"] = torch.full((96, 1), 0.5)
        tensors[f"{UP}.weight_zero_point"] = torch.full((96, 1), 3, dtype=torch.int8)

    llama(tmp_path, change, {"quant_method": "compressed-tensors", "format": "int-quantized"})
    assert opened(tmp_path).read(f"{UP}.weight")[0, :3].tolist() == [-65.0, -64.5, -64.0]


def words(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Codes packed along ``dim``, the lowest bits first."""
    parts = codes.long().unflatten(dim, (-1, 32 // bits)).unbind(dim + 1)
    packed = sum(part << (bits * i) for i, part in enumerate(parts))
    return torch.as_tensor(packed).to(torch.int32)


def grouped(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [out, in], zeros and scales [out, groups] whose (code - zero) * scale is near a weight."""
    runs = weight.unflatten(1, (-1, group))
    low, high = runs.amin(-1), runs.amax(-1)
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = (-low / scales).round().clamp(1, 2**bits - 1)
    codes = (runs / scales[..., None] + zeros[..., None]).round().clamp(0, 2**bits - 1)
    return codes.flatten(1).int(), zeros.int(), scales


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_packed_integers(tmp_path, method, bits):
    if (method, bits) == ("awq", 8):
        pytest.skip("AWQ has four bits")
    wanted: Tensors = {}

    def change(tensors: Tensors) -> None:
        for module in projections(tensors):
            codes, zeros, scales = grouped(tensors.pop(f"{module}.weight"), bits, 16)
            wanted[f"{module}.weight"] = (
                (codes.unflatten(1, (-1, 16)) - zeros[..., None]) * scales[..., None]
            ).flatten(1)
            tensors |= {f"{module}.{k}": v for k, v in stored(codes, zeros, scales).items()}

    def stored(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> Tensors:
        scale = scales.half()
        if method == "gptq":
            return {
                "qweight": words(codes.t(), bits, 0), "qzeros": words(zeros.t() - 1, bits, 1),
                "scales": scale.t(), "g_idx": (torch.arange(codes.shape[1]) // 16).int(),
            }  # fmt: skip
        if method == "awq":
            order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
            mixed = [t.t().unflatten(1, (-1, 8))[:, :, order].flatten(1) for t in (codes, zeros)]
            return {"qweight": words(mixed[0], 4, 1), "qzeros": words(mixed[1], 4, 1), "scales": scale.t()}
        return {
            "weight_packed": words(codes, bits, 1), "weight_zero_point": words(zeros, bits, 0),
            "weight_scale": scale, "weight_shape": torch.tensor(codes.shape),
        }  # fmt: skip

    group = {"weights": {"num_bits": bits, "group_size": 16, "type": "int"}}
    fields = {"bits": bits, "group_size": 16, "format": "pack-quantized", "config_groups": {"group_0": group}}
    llama(tmp_path, change, {"quant_method": method, **fields})
    found = opened(tmp_path)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found.read(name), tensor)
    if bits == 4:
        quant = Quant("u4g16", ELEMS["u4"], 16, ELEMS["f16"], ELEMS["u8"])
        kept = materialize(Quantize(Tensor(f"{UP}.weight"), quant), found)
        assert isinstance(kept, QuantizedTensor)
        assert torch.equal(kept.dequantize(), found.read(f"{UP}.weight"))


def test_integers_around_zero_are_kept_in_the_signed_scheme(tmp_path):
    """Kimi K2's experts: four bits in groups of 32 without zeros."""
    codes = torch.randint(0, 16, (96, 64), generator=torch.Generator().manual_seed(0))

    def change(tensors: Tensors) -> None:
        del tensors[f"{UP}.weight"]
        tensors[f"{UP}.weight_packed"] = words(codes, 4, 1)
        tensors[f"{UP}.weight_scale"] = torch.rand(96, 2).bfloat16()
        tensors[f"{UP}.weight_shape"] = torch.tensor([96, 64])

    group = {"weights": {"num_bits": 4, "group_size": 32}}
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    llama(tmp_path, change, {**method, "config_groups": {"group_0": group}})
    found = opened(tmp_path)
    kept = found.read_quantized(f"{UP}.weight", Quant("i4g32", ELEMS["i4"], 32, ELEMS["bf16"]))
    assert torch.equal(kept.values, codes.to(torch.int8) - 8)
    assert torch.equal(kept.dequantize(), found.read(f"{UP}.weight"))
    assert found.read_quantized(f"{UP}.weight", Quant("i4g16", ELEMS["i4"], 16, ELEMS["bf16"])) is None
    assert found.read_quantized(f"{UP}.weight", Quant("i8g32", ELEMS["i8"], 32, ELEMS["bf16"])) is None


LEVELS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.parametrize("method", ["compressed-tensors", "modelopt"])
def test_nvfp4(tmp_path, method):
    """Bytes of two levels, a scale in FP8 for sixteen, one for all: times or over, as each maker has it."""
    data = torch.randint(0, 256, (96, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scales, whole = (torch.rand(96, 4) + 0.1).to(F8), torch.tensor([0.5])

    def change(tensors: Tensors) -> None:
        key = f"{UP}.weight_packed" if method == "compressed-tensors" else f"{UP}.weight"
        over = "weight_global_scale" if method == "compressed-tensors" else "weight_scale_2"
        del tensors[f"{UP}.weight"]
        tensors |= {key: data, f"{UP}.weight_scale": scales, f"{UP}.{over}": whole}

    llama(tmp_path, change, {"quant_method": method, "quant_algo": "NVFP4"})
    found = opened(tmp_path).read(f"{UP}.weight")
    factor = 2.0 if method == "compressed-tensors" else 0.5
    for row, column in [(0, 0), (3, 17), (95, 63)]:
        byte = int(data[row, column // 2])
        level = LEVELS[byte >> 4 if column % 2 else byte & 15]
        assert found[row, column] == level * float(scales[row, column // 16]) * factor


def test_experts_of_deepseek_v4_are_levels_of_four_bits(tmp_path):
    """Bytes that are called integers, with exponents as the scales of 32."""
    data = torch.randint(-128, 128, (96, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int8)

    def change(tensors: Tensors) -> None:
        tensors[f"{UP}.weight"] = data
        tensors[f"{UP}.weight_scale_inv"] = torch.full((96, 2), 126, dtype=torch.uint8)

    llama(tmp_path, change, FP8)
    found = opened(tmp_path).read(f"{UP}.weight")
    assert found[3, 6:8].tolist() == [LEVELS[int(data[3, 3]) & 15] / 2, LEVELS[int(data[3, 3]) >> 4 & 15] / 2]


def test_gpt_oss_is_read_as_the_library_dequantizes_it(tmp_path):
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, layer_types=["full_attention"], pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    transformers.GptOssForCausalLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, out = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, out, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 130, (experts, out, inputs // 32), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**fields, "quantization_config": {"quant_method": "mxfp4"}})
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    found = opened(tmp_path)
    for name, wanted in theirs.state_dict().items():
        torch.testing.assert_close(found.read(name), wanted.float(), msg=name)  # 5.17 gives bf16, as exact


def test_what_is_not_read_is_refused(tmp_path):
    llama(tmp_path, lambda tensors: None, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert refusal(tmp_path) == (
        "PATH: its weights are stored quantized (bitsandbytes)\n"
        "hint: use the unquantized checkpoint and irloom's own `quantize` pass"
    )


def test_scales_that_do_not_cover_a_weight_are_refused(tmp_path):
    llama(tmp_path, fp8((20, 48)), FP8)
    assert refusal(tmp_path) == (
        "PATH: `model.layers.0.mlp.down_proj.weight` f8e4m3[64, 96], "
        "`model.layers.0.mlp.down_proj.weight_scale_inv` f32[4, 2]: scales do not cover the weight\n"
        "hint: the file is damaged, or the quantization_config in config.json is that of another model"
    )


def test_words_without_their_zeros_are_refused(tmp_path):
    def change(tensors: Tensors) -> None:
        tensors.pop(f"{UP}.weight")
        tensors[f"{UP}.qweight"] = torch.zeros(8, 96, dtype=torch.int32)

    llama(tmp_path, change, {"quant_method": "gptq", "bits": 4})
    assert refusal(tmp_path) == (
        f"PATH: `{UP}.qweight` i32[8, 96]: `{UP}.qzeros` is missing\n"
        "hint: the file is damaged, or the quantization_config in config.json is that of another model"
    )
