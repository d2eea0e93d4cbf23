"""How long `irloom verify` takes for every pass of the CPU's pipeline, and what it finds.

python benchmarks/verify.py                  # Gemma 3 270M, real weights, on this machine
python benchmarks/verify.py --device cuda    # two layers of Llama 3.1 8B, random weights in bf16, on a GPU
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click

from irloom.driver import Choice
from irloom.verify import How, verify

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
DEMO = Path(__file__).parent.parent / ".demo" / "gemma-3-270m-q4_k_m.gguf"


@click.command()
@click.option("--device", default="cpu")
@click.option("--model", help="Another model than the one above.")
def main(device: str, model: str | None) -> None:
    """Time it twice: the first run also traces the model."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA))
        how = How() if device == "cpu" else How(layers=2, device=device, random=True, dtype="bf16")
        path = model or (DEMO if device == "cpu" else folder)
        for run in ("first", "second"):
            start = time.perf_counter()
            found = verify(path, Choice(), how)
            print(f"{run}: {time.perf_counter() - start:.1f} s, {found.session}")
    for row in found.rows:
        r = row.compared.report if row.compared else None
        said = f"error {r.error:.1e} of {r.allowed:.1e}, kl {r.kl}, top-1 {r.top1}" if r else row.error or ""
        print(
            f"{'ok ' if row.ok else 'BAD'} {row.text:20} {row.changes:4} changes {row.seconds:6.2f} s  {said}"
        )


if __name__ == "__main__":
    main()
