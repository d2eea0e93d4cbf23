"""How long it takes to trace large models without their weights, and how much there is to read afterwards.

    python benchmarks/trace.py --json trace.json

Each model is a config of published sizes, traced on the meta device in a fresh process with an empty cache;
nothing is downloaded. README.md here says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from processes import ProcessError, Run, worker
from report import cell, machine, print_table, say, write_json

LLAMA = {
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3 8B": (
        "LlamaConfig",
        {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32},
    ),
    "Llama 3 70B": (
        "LlamaConfig",
        {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
         "num_attention_heads": 64},
    ),
    "Mistral 7B": (
        "MistralConfig",
        {"vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None},
    ),
    "Qwen 3 32B": (
        "Qwen3Config",
        {"vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
         "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128},
    ),
    "Gemma 2 27B": (
        "Gemma2Config",
        {"vocab_size": 256000, "hidden_size": 4608, "intermediate_size": 36864, "num_hidden_layers": 46,
         "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 144},
    ),
    "Gemma 3 27B": (
        "Gemma3TextConfig",
        {"vocab_size": 262208, "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
         "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168,
         "sliding_window": 1024},
    ),
    "Phi 3 medium": (
        "Phi3Config",
        {"vocab_size": 32064, "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
         "num_attention_heads": 40, "num_key_value_heads": 10},
    ),
    "DeepSeek V3": (
        "DeepseekV3Config",
        {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
         "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
         "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
         "topk_group": 4, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
         "max_position_embeddings": 163840,
         "rope_scaling": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0,
                          "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
                          "original_max_position_embeddings": 4096}},
    ),
    "Qwen 3 Next 80B": (
        "Qwen3NextConfig",
        {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16,
         "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512, "num_experts_per_tok": 10,
         "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
         "max_position_embeddings": 262144},
    ),
    "GPT-2 XL": ("GPT2Config", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
}  # fmt: skip


def main() -> None:
    args = arguments()
    say(f"load average {machine()['load']:.1f}; goals: 30 s and 3 GB to trace, 120 lines\n")
    figures: dict[str, Any] = {"machine": machine(), "models": {}}
    rows = []
    for name in args.only or MODELS:
        try:
            figures["models"][name] = found = measure(*MODELS[name])
        except ProcessError as error:
            figures["models"][name] = {"failed": str(error)}
            say(f"{name}: FAILED: {error}")
            continue
        rows.append(row(name, found))
        say(f"  {name} done")
    say("")
    print_table([HEADS, *rows])
    write_json(args.json, figures)


def measure(cls: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One model in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory() as tmp:
        run: Run = worker("trace_worker.py", cls, json.dumps(settings), env={"XDG_CACHE_HOME": tmp})
    return {"layers": settings.get("num_hidden_layers") or settings["n_layer"], "peak": run.peak, **run.said}


HEADS = [
    "", "layers", "trace s", "CPU s", "again s", "outline s", "rest s", "nodes", "outlined", "functions",
    "lines", "outlined", "at the end", "peak GB",
]  # fmt: skip


def row(name: str, found: dict[str, Any]) -> list[str]:
    """A line of the table; its columns are ``HEADS``."""
    seconds, nodes, lines = found["seconds"], found["nodes"], found["lines"]
    times = [cell(seconds[k]) for k in ("trace", "trace (CPU)", "trace again", "outline", "rest")]
    counts = [
        nodes["trace"],
        nodes["outline"],
        found["functions"],
        lines["trace"],
        lines["outline"],
        lines["end"],
    ]
    return [name, str(found["layers"]), *times, *(f"{n:,}" for n in counts), cell(found["peak"] / 1e9)]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", action="append", choices=list(MODELS), help="repeatable; default: all")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


if __name__ == "__main__":
    main()
