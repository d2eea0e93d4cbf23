"""GGUF files: the library's config, names and values, and a clear word for a file that is damaged."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from irloom.frontends.gguf import open_checkpoint, read_config, read_header, tokenizer_files
from irloom.frontends.hf.skeleton import skeleton
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.weights import Quantize, Tensor, materialize

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA_NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
I8G32 = Quant("i8g32", ELEMS["i8"], 32, ELEMS["f16"])
I4G32 = Quant("i4g32", ELEMS["i4"], 32, ELEMS["f16"])
Q8_0, Q4_0, Q6_K = (gguf.GGMLQuantizationType[k] for k in ("Q8_0", "Q4_0", "Q6_K"))


def gguf_name(name: str, norms: dict[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    for ours, theirs in {**NAMES, **norms}.items():
        if module == ours:
            return f"{theirs}.{leaf}"
        if module.endswith(f".{ours}"):
            return f"blk.{module.split('.')[2]}.{theirs}.{leaf}"
    raise AssertionError(name)


def as_llama_cpp_stores(name: str, x: np.ndarray, arch: str) -> np.ndarray:
    if arch == "llama" and (heads := {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])):
        return x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
    return x + 1 if arch == "gemma3" and name.endswith("norm.weight") else x


def write_gguf(
    path: Path, model: Any, arch: str, kinds: dict[str, gguf.GGMLQuantizationType] | None = None
) -> None:
    """Write ``model`` as llama.cpp would, the tensors whose names end as in ``kinds`` in those types."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *"▁abcdefghijklmnopqrstuvwxyz",
        "ab",
        "▁a",
        "abc",
        *(f"<{i}>" for i in range(6)),
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([3, 3, 3, 2] + [1] * (len(tokens) - 4))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = as_llama_cpp_stores(name, tensor.numpy(), arch)
        kind = next((k for end, k in (kinds or {}).items() if name.endswith(end)), None)
        stored = data if kind is None else gguf.quantize(data, kind)
        writer.add_tensor(
            gguf_name(name, LLAMA_NORMS if arch == "llama" else GEMMA_NORMS), stored, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build(kind: str, **extra: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **extra})
    with torch.random.fork_rng():
        model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")._from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("Llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def gemma() -> Any:
    return build("Gemma3Text", sliding_window=8, num_key_value_heads=1)


def opened(path: Path) -> tuple[Any, Any]:
    header = read_header(path)
    config = read_config(header)
    return config, open_checkpoint(header, skeleton(config, torch.float32))


def test_a_llama_reads_back_with_its_rotary_rows_in_the_librarys_order(llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama")
    config, checkpoint = opened(tmp_path)
    assert type(config) is type(llama.config)
    for field, value in SIZES.items():
        assert getattr(config, field) == value
    state = llama.state_dict()
    assert set(checkpoint.names()) == set(state)
    for name, wanted in state.items():
        assert torch.equal(checkpoint.read(name), wanted), name
        assert checkpoint.dims(name) == wanted.shape


def test_a_gemma3_reads_back_with_its_norms_less_one_and_its_head_tied(gemma, tmp_path):
    write_gguf(tmp_path / "m.gguf", gemma, "gemma3")
    config, checkpoint = opened(tmp_path)
    assert (type(config), config.sliding_window) == (type(gemma.config), 8)
    state = gemma.state_dict()
    assert set(checkpoint.names()) == set(state)
    for name, wanted in state.items():
        near = 1e-6 if name.endswith("norm.weight") else 0.0
        assert torch.allclose(checkpoint.read(name), wanted, atol=near, rtol=0.0), name
    assert torch.equal(checkpoint.read("lm_head.weight"), state["model.embed_tokens.weight"])


def test_blocks_are_decoded_as_the_library_decodes_them(llama, tmp_path):
    kinds = {"up_proj.weight": Q8_0, "q_proj.weight": Q4_0, "embed_tokens.weight": Q8_0}
    write_gguf(tmp_path / "m.gguf", llama, "llama", kinds)
    _, checkpoint = opened(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    for name, wanted in theirs.state_dict().items():
        assert torch.equal(checkpoint.read(name), wanted), name


@pytest.mark.parametrize(
    ("kind", "quant", "name"),
    [
        (Q8_0, I8G32, "model.layers.1.mlp.up_proj.weight"),
        (Q4_0, I4G32, "model.layers.1.mlp.up_proj.weight"),
        (Q8_0, I8G32, "model.layers.1.self_attn.q_proj.weight"),
        (Q4_0, I4G32, "model.layers.1.self_attn.k_proj.weight"),
    ],
    ids=["Q8_0", "Q4_0", "Q8_0 with rows permuted", "Q4_0 with rows permuted"],
)
def test_blocks_of_the_wanted_scheme_are_kept_to_the_bit(llama, tmp_path, kind, quant, name):
    write_gguf(tmp_path / "m.gguf", llama, "llama", {"_proj.weight": kind})
    _, checkpoint = opened(tmp_path)
    kept = materialize(Quantize(Tensor(name), quant), checkpoint)
    assert isinstance(kept, QuantizedTensor)
    assert torch.equal(kept.dequantize(), checkpoint.read(name))
    assert (kept.values.dtype, kept.scales.dtype, kept.dims) == (
        torch.int8,
        torch.float16,
        checkpoint.dims(name),
    )


def test_rounding_decoded_q8_0_again_gives_its_integers_and_scales(llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama", {"_proj.weight": Q8_0})
    _, checkpoint = opened(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    kept = checkpoint.read_quantized(name, I8G32)
    from irloom.ir.quantized import quantize

    rounded = quantize(checkpoint.read(name), I8G32)
    assert torch.equal(rounded.values, kept.values)
    assert torch.equal(rounded.scales, kept.scales)


def test_another_scheme_than_the_stored_one_is_rounded_to(llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama", {"_proj.weight": Q8_0})
    _, checkpoint = opened(tmp_path)
    out = materialize(Quantize(Tensor("model.layers.{i}.mlp.up_proj.weight"), I4G32), checkpoint, 1)
    assert isinstance(out, QuantizedTensor)
    assert out.values.abs().max() <= 8


def test_plain_tensors_can_be_linked_to_and_blocks_cannot(llama, tmp_path):
    write_gguf(tmp_path / "m.gguf", llama, "llama", {"up_proj.weight": Q8_0})
    _, checkpoint = opened(tmp_path)
    at = checkpoint.stored("model.norm.weight")
    stored = at.path.read_bytes()[at.offset : at.offset + at.nbytes]
    assert stored == llama.model.norm.weight.detach().numpy().tobytes()
    assert checkpoint.stored("model.layers.0.mlp.up_proj.weight") is None
    assert checkpoint.stored("model.layers.0.self_attn.q_proj.weight") is None


def test_the_tokenizer_is_converted_once(llama, tmp_path):
    path, cache = tmp_path / "m.gguf", tmp_path / "cache"
    write_gguf(path, llama, "llama")
    header = read_header(path)
    config = read_config(header)
    files = tokenizer_files(header, config, cache)
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    assert tokenizer.decode(tokenizer("abc a")["input_ids"], skip_special_tokens=True) == "abc a"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert theirs("abc a cab")["input_ids"] == tokenizer("abc a cab")["input_ids"]
    written = (files / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_files(header, config, cache) == files
    assert (files / "tokenizer.json").stat().st_mtime_ns == written
    assert [p.name for p in cache.iterdir()] == [files.name]


def test_rotary_factors_become_llama3_scaling(llama, tmp_path):
    """llama.cpp stores Llama 3.1's scaling as one factor a frequency; the library's mapping drops them."""
    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    scaled = transformers.LlamaConfig(**{**SIZES, "rope_parameters": scaling})
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    factors = rotary(llama.config).inv_freq / rotary(scaled).inv_freq
    write_gguf(tmp_path / "m.gguf", llama, "llama")
    header = with_tensor(tmp_path / "m.gguf", "rope_freqs.weight", factors.numpy())
    config = read_config(header)
    assert torch.allclose(rotary(config).inv_freq, rotary(scaled).inv_freq, rtol=1e-4)
    open_checkpoint(header, skeleton(config, torch.float32))


def with_tensor(path: Path, name: str, data: np.ndarray) -> Any:
    """The header of a copy of ``path`` that also holds ``name``."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("more.gguf"), reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_header(path.with_name("more.gguf"))


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


ARCH = string("general.architecture") + struct.pack("<I", 8) + string("llama")


def head(tensors: int = 0, pairs: int = 1, body: bytes = ARCH, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def tensor(name: str = "w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


DAMAGED = "\nhint: the file is damaged, or its download is incomplete"
SHORT = "\nhint: the download may be incomplete; fetch the file again"
BAD = {
    "empty": (b"", "0 bytes are no GGUF file\nhint: fetch the file again"),
    "bad magic": (b"GGML" + bytes(40), "begins with b'GGML', not with b'GGUF'\nhint: is it a GGUF file?"),
    "old version": (head(version=1), "has version 1\nhint: irloom reads little-endian GGUF versions 2 and 3"),
    "big-endian": (
        head(version=3 << 24),
        "is big-endian\nhint: irloom reads little-endian GGUF versions 2 and 3",
    ),
    "more keys than bytes": (
        head(pairs=1 << 40),
        f"key 2 of {1 << 40} at byte 69 takes 8 bytes, but the file has 69{DAMAGED}",
    ),
    "a key that claims the whole file and more": (
        head(body=struct.pack("<Q", 1 << 62) + b"general"),
        f"key 1 of 1 at byte 32 takes {1 << 62} bytes, but the file has 39{DAMAGED}",
    ),
    "an array that claims more than there is": (
        head(body=string("a") + struct.pack("<IIQ", 9, 4, 1 << 60)),
        f"`a` at byte 49 takes {1 << 62} bytes, but the file has 49{DAMAGED}",
    ),
    "a vocabulary that claims more than there is": (
        head(body=string("a") + struct.pack("<IIQ", 9, 8, 1 << 60) + string("x")),
        f"`a` at byte 58 takes 8 bytes, but the file has 58{DAMAGED}",
    ),
    "an array of arrays": (
        head(body=string("a") + struct.pack("<IIQ", 9, 9, 1)),
        "`a` is an array of the type 9, which irloom does not read",
    ),
    "an unknown type of value": (
        head(body=string("a") + struct.pack("<I", 77)),
        "`a` has the unknown type 77",
    ),
    "a key that is not text": (
        head(body=struct.pack("<Q", 2) + b"\xff\xfe"),
        "key 1 of 1 at byte 32 is not UTF-8",
    ),
    "a tensor of many dims": (
        head(1, body=ARCH + tensor(dims=(1,) * 9)),
        "`w` claims 9 dims; GGUF has at most 4",
    ),
    "a tensor of an unknown type": (
        head(1, body=ARCH + tensor(kind=99)),
        "`w` has the unknown tensor type 99",
    ),
    "a tensor not in whole blocks": (
        head(1, body=ARCH + tensor(dims=(33,), kind=8)),
        "`w` is Q8_0[33], not in blocks of 32",
    ),
    "a tensor past the end": (
        head(1, body=ARCH + tensor(dims=(1 << 40, 1 << 20))),
        f"`w` ends at byte {128 + (1 << 62)}, but the file has 110{SHORT}",
    ),
    "a tensor that is there twice": (
        head(2, body=ARCH + tensor(dims=(0,)) * 2) + bytes(64),
        "`w` is there twice",
    ),
    "an alignment that is no power of two": (
        head(0, 2, ARCH + string("general.alignment") + struct.pack("<II", 4, 7)),
        "`general.alignment` is 7, which is no power of two",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_lies_is_refused_before_anything_is_read_past_its_end(tmp_path, case):
    data, message = BAD[case]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError) as refused:
        read_header(tmp_path)
    assert str(refused.value) == f"{tmp_path / 'm.gguf'}: {message}"


def test_a_whole_file_cut_anywhere_is_refused(llama, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, llama, "llama")
    whole = path.read_bytes()
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError):
            read_header(path)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(path)
    return str(refused.value).replace(str(path), "PATH")


def test_a_directory_needs_one_gguf_file(llama, tmp_path):
    with pytest.raises(CheckpointError) as refused:
        read_header(tmp_path)
    assert str(refused.value) == f"{tmp_path}: no GGUF file\nhint: give the path of one file"
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(CheckpointError) as refused:
        read_header(tmp_path)
    assert str(refused.value) == f"{tmp_path}: 2 GGUF files: a.gguf, b.gguf\nhint: give the path of one file"


def test_an_architecture_that_the_library_does_not_know_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    strange = head(1, body=ARCH.replace(b"llama", b"dream"))
    path.write_bytes(strange + tensor("token_embd.weight") + bytes(300))
    assert refusal(path) == (
        "PATH: transformers makes no config of `dream`: "
        "GGUF model with architecture dream is not supported yet.\n"
        "hint: pip install -U transformers, or use the model's safetensors checkpoint"
    )


def test_a_known_architecture_with_odd_metadata_is_not_blamed_on_the_library(tmp_path):
    path = tmp_path / "m.gguf"
    lacks_heads = head(1, body=ARCH.replace(string("llama"), string("lfm2")))
    path.write_bytes(lacks_heads + tensor("token_embd.weight") + bytes(300))
    said, hint = refusal(path).splitlines()
    assert said.startswith("PATH: transformers makes no config of `lfm2`: ")
    assert hint == (
        "hint: its metadata may be damaged: download it again, or use the model's safetensors checkpoint"
    )


def test_a_tensor_of_other_dims_than_the_metadata_says_is_refused(llama, tmp_path):
    path = tmp_path / "m.gguf"
    small = build("Llama", tie_word_embeddings=False, intermediate_size=32)
    small.config.intermediate_size = 96
    write_gguf(path, small, "llama")
    assert refusal(path) == (
        "PATH: `model.layers.0.mlp.gate_proj.weight`, from `blk.0.ffn_gate.weight`, is [32, 64], "
        "but the config makes it [96, 64]\n"
        "hint: config.json is that of another model, or the file is damaged"
    )


def test_an_absent_tensor_and_one_without_a_place_are_refused(llama, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, llama, "llama")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xp.weight"))
    assert refusal(path) == (
        "PATH: nothing in it for `model.layers.1.mlp.up_proj.weight` of LlamaForCausalLM\n"
        "hint: the checkpoint is incomplete, or config.json is that of another model"
    )
    write_gguf(path, llama, "llama")
    header = with_tensor(path, "blk.0.extra.weight", np.zeros(4, np.float32))
    assert refusal(header.path) == (
        "PATH: LlamaForCausalLM has no place for `blk.0.extra.weight`\n"
        "hint: is config.json that of another model?"
    )


def test_gemma_3_270m_reads_as_the_library_reads_it(gemma_gguf):
    """All 237 tensors equal the library's to the bit; that takes a minute, so here it is one of each type."""
    header = read_header(gemma_gguf)
    config = read_config(header)
    assert (config.model_type, config.vocab_size, config.num_hidden_layers) == ("gemma3_text", 262144, 18)
    checkpoint = open_checkpoint(header, skeleton(config, torch.float32))
    reader = {e.name: e for e in header.entries.values()}
    for name, theirs, offset in [
        ("model.layers.3.self_attn.q_proj.weight", "blk.3.attn_q.weight", 0),
        ("model.layers.3.self_attn.o_proj.weight", "blk.3.attn_output.weight", 0),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", 0),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", 0),
        ("model.norm.weight", "output_norm.weight", 1),
    ]:
        entry = reader[theirs]
        with gemma_gguf.open("rb") as file:
            file.seek(entry.offset)
            data = np.frombuffer(file.read(entry.nbytes), np.uint8)
        kind = gguf.GGMLQuantizationType(entry.kind)
        plain = data.view(np.float32) if entry.kind == 0 else gguf.dequantize(data, kind)
        assert torch.equal(checkpoint.read(name), torch.from_numpy(plain.reshape(entry.dims) - offset)), name
    embedding = materialize(Quantize(Tensor("model.embed_tokens.weight"), I8G32), checkpoint)
    assert isinstance(embedding, QuantizedTensor)
    assert embedding.dims == (262144, 640)
