"""A checkpoint's logits: as the program that irloom traces, and as the library's own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.skeleton import skeleton
from irloom.frontends.nemo import open_checkpoint, open_path
from irloom.frontends.nemo.frontend import Nemo
from irloom.ir.elem import ELEMS
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs

TOLERANCE = 1e-4


def traced_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of ids i64[S, T], packed into one ragged batch, by the traced program."""
    options = TraceOptions(dtype=ELEMS["f32"], check=False)
    frontend = Nemo()
    run = Interpreter(frontend.trace(path, options), frontend.checkpoint(path, options))
    (logits,) = run(ids.reshape(-1).int(), Seqs.of([ids.shape[1]] * len(ids)))
    return logits.reshape(*ids.shape, -1)


@torch.inference_mode()
def library_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of ids i64[S, T] by the library's module with the checkpoint's weights."""
    return library_model(path)(input_ids=ids, use_cache=False).logits


def library_model(path: Path) -> Any:
    """The library's module in f32, every weight of it from the checkpoint."""
    from transformers import AutoModelForCausalLM

    opened = open_path(path)
    config = opened.config()
    checkpoint = open_checkpoint(opened, skeleton(config, torch.float32))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    held = model.state_dict()
    assert set(checkpoint.names()) == set(held)
    for name, tensor in held.items():
        tensor.copy_(checkpoint.read(name))
    return model


def difference(folder: Path, logits: Any, file: str) -> float:
    """The largest difference of ``logits(path, ids)`` from Megatron's, on the words that both have."""
    kept = load_file(folder / "reference.safetensors")
    found = logits(folder / file, kept["ids"])
    return (found - kept["logits"][..., : found.shape[-1]]).abs().max().item()
