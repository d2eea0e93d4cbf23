"""Make a model for onnxruntime-genai from a GGUF file, with its own builder; nothing of irloom takes part.

genai_model.py GGUF FOLDER PRECISION

The builder reads a directory of transformers', so the file's weights are decoded into one first, beside
``FOLDER``. Gemma 3's rotary settings have other places in the library's config than the builder (0.18) reads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any


def main(gguf: Path, out: Path, precision: str) -> None:
    """Build ``out`` whole or not at all."""
    source, partial = out.parent / "transformers", out.with_name(f".{out.name}.partial")
    if not (source / "model.safetensors").is_file():
        decode(gguf, source)
    shutil.rmtree(partial, ignore_errors=True)
    build(source, partial, precision)
    partial.rename(out)


def decode(gguf: Path, out: Path) -> None:
    """The file as a directory of transformers', in f32."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **options)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.config.__dict__.pop("quantization_config", None)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    tied = model.config.tie_word_embeddings
    weights = {k: x for k, x in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(weights, out / "model.safetensors", {"format": "pt"})


def build(source: Path, out: Path, precision: str) -> None:
    import transformers
    from onnxruntime_genai.models import builder

    read = transformers.AutoConfig.from_pretrained

    def as_builder_reads(*args: Any, **kwargs: Any) -> Any:
        config = read(*args, **kwargs)
        rope = getattr(config, "rope_parameters", None) or {}
        if "full_attention" in rope:
            config.rope_theta = rope["full_attention"]["rope_theta"]
            config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
            config.rope_parameters = {**rope, **rope["full_attention"]}
        return config

    transformers.AutoConfig.from_pretrained = as_builder_reads
    asked = ("", str(source), str(out), precision, "cpu", str(out.parent / "hub"))
    builder.create_model(*asked, **builder.parse_extra_options(*asked, []))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
