"""A checkpoint of any size with random weights: a Llama config and safetensors shards. Standard library only.

Written as a stream, so that making it needs no memory worth counting.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BLOCK = 16 << 20
SHARD = 2 << 30
Tensors = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """What the config says; layers are added until the size is reached."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int

    def layer(self, i: int) -> Tensors:
        h, kv, at = self.hidden, self.hidden // self.heads * self.kv_heads, f"model.layers.{i}"
        return {
            f"{at}.self_attn.q_proj.weight": (h, h),
            f"{at}.self_attn.k_proj.weight": (kv, h),
            f"{at}.self_attn.v_proj.weight": (kv, h),
            f"{at}.self_attn.o_proj.weight": (h, h),
            f"{at}.mlp.gate_proj.weight": (self.intermediate, h),
            f"{at}.mlp.up_proj.weight": (self.intermediate, h),
            f"{at}.mlp.down_proj.weight": (h, self.intermediate),
            f"{at}.input_layernorm.weight": (h,),
            f"{at}.post_attention_layernorm.weight": (h,),
        }

    def ends(self) -> Tensors:
        embedding = (self.vocab, self.hidden)
        return {
            "model.embed_tokens.weight": embedding,
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": embedding,
        }


LARGE = Shape(4096, 14336, 32, 8, 128256)  # Llama 3 8B
SMALL = Shape(1024, 3584, 8, 2, 32768)


def write_checkpoint(folder: Path, nbytes: int) -> tuple[int, int]:
    """Write about ``nbytes`` of bf16 weights; bytes of all tensors, and of the largest."""
    shape = LARGE if nbytes >= 4 << 30 else SMALL
    layers = max(1, round((nbytes - size(shape.ends())) / size(shape.layer(0))))
    tensors = shape.ends() | {k: v for i in range(layers) for k, v in shape.layer(i).items()}
    return write_model(folder, config(shape, layers), tensors)


def write_model(folder: Path, config: dict[str, object], tensors: Tensors) -> tuple[int, int]:
    """Write a checkpoint of ``tensors``; bytes of all, and of the largest. Its index comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    block, places = random_block(), dict[str, str]()
    with ThreadPoolExecutor() as pool:
        writing = list[Future[None]]()
        for n, shard in enumerate(shards(tensors)):
            name = f"model-{n + 1:05}.safetensors"
            writing.append(pool.submit(write_shard, folder / name, shard, block))
            places |= dict.fromkeys(shard, name)
        for each in writing:
            each.result()
    index = {"metadata": {"total_size": size(tensors)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size(tensors), max(2 * math.prod(dims) for dims in tensors.values())


def config(shape: Shape, layers: int) -> dict[str, object]:
    """config.json of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }


def size(tensors: Tensors) -> int:
    """Bytes of tensors in bf16."""
    return sum(2 * math.prod(dims) for dims in tensors.values())


def shards(tensors: Tensors) -> Iterator[Tensors]:
    """Tensors in files of up to two gigabytes."""
    now: Tensors = {}
    for name, dims in tensors.items():
        if now and size(now | {name: dims}) > SHARD:
            yield now
            now = {}
        now[name] = dims
    yield now


def random_block() -> bytes:
    """bf16 numbers of about 0.01 in size: random signs and mantissas, one exponent."""
    data = bytearray(random.Random(0).randbytes(BLOCK))
    data[1::2] = data[1::2].translate(bytes(b & 0x80 | 0x3C for b in range(256)))
    return bytes(data)


def write_shard(path: Path, tensors: Tensors, block: bytes) -> None:
    """A safetensors file: length of the header, header, bytes. https://github.com/huggingface/safetensors

    Weights of norms are ones, so that activations keep their size.
    """
    header, at = {}, 0
    for name, dims in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + 2 * math.prod(dims)]}
        at += 2 * math.prod(dims)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    ones = bytes((0x80, 0x3F)) * (1 << 16)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in tensors.items():
            left, part = 2 * math.prod(dims), ones if name.endswith("norm.weight") else block
            while left > 0:
                file.write(memoryview(part)[:left])
                left -= len(part)
