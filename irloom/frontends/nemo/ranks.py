"""NeMo 1's ``model_weights.ckpt``: one file, or one for each tensor- and pipeline-parallel rank.

A rank holds its share of each tensor, and numbers the layers of its stage from 0. Old models of before
Megatron-core have names of their own.
"""

from __future__ import annotations

import re

from irloom.frontends.nemo.archive import Files
from irloom.frontends.nemo.laid import Laid, joined, laid
from irloom.frontends.nemo.savefile import read_saved
from irloom.frontends.nemo.unpickle import Unreadable
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored

FILE = re.compile(r"(?:(?:mp_rank_(\d+)|tp_rank_(\d+)(?:_pp_rank_(\d+))?)/)?model_weights\.ckpt")
_OLD = (
    ("language_model.embedding.", "embedding."),
    ("language_model.output_layer.", "output_layer."),
    ("language_model.encoder.", "decoder."),
    ("language_model.rotary_pos_emb.", "rotary_pos_emb."),
    (".query_key_value.", ".linear_qkv."),
    (".self_attention.dense.", ".self_attention.linear_proj."),
    (".dense_h_to_4h.", ".linear_fc1."),
    (".dense_4h_to_h.", ".linear_fc2."),
    (".post_attention_layernorm.", ".pre_mlp_layernorm."),
)
_WHOLE = "the weights are damaged, or those of two models are mixed"
_OLD_UP = ".dense_h_to_4h_2."  # the second half of a gated MLP, once a tensor of its own
_LAYER = re.compile(r"(?<=decoder\.layers\.)\d+(?=\.)")
_ROWS = re.compile(
    r"(word_embeddings|output_layer|linear_qkv|linear_fc1|linear_q_proj|linear_q_up_proj|linear_kv_up_proj)"
    r"\.(weight|bias)$"
)
_COLUMNS = re.compile(r"(linear_proj|linear_fc2)\.weight$")
_ALIKE = re.compile(
    r"norm|rotary_pos_emb|(linear_proj|linear_fc2)\.bias$|router\.|gate_weight$|position_embeddings\.weight$"
    r"|(linear_q_down_proj|linear_kv_down_proj)\.weight$|_extra_state$"
)


def read_ranks(files: Files) -> dict[str, Laid]:
    """The tensors of all rank files, joined; layers numbered through the model."""
    stages = _stages(files)
    found: dict[str, Laid] = {}
    first = 0
    for stage in sorted(stages):
        ranks = [_tensors(files, stages[stage][t]) for t in sorted(stages[stage])]
        numbers = {int(m[0]) for key in ranks[0] if (m := _LAYER.search(key))}
        shift = first - min(numbers, default=0)
        for key in ranks[0]:
            name = _LAYER.sub(lambda m, shift=shift: str(int(m[0]) + shift), key)
            if name not in found:  # the tied embedding is in the first and in the last stage
                found[name] = _merged(files, key, ranks)
        first += len(numbers)
    return found


def _stages(files: Files) -> dict[int, dict[int, str]]:
    """Files by pipeline stage and tensor-parallel rank, none of them missing."""
    stages: dict[int, dict[int, str]] = {}
    for name in files.names():
        if m := FILE.fullmatch(name):
            stages.setdefault(int(m[3] or 0), {})[int(m[1] or m[2] or 0)] = name
    ranks = max((max(tensor) for tensor in stages.values()), default=0) + 1
    for stage in range(max(stages, default=0) + 1):
        for rank in range(ranks):
            if rank not in stages.get(stage, {}):
                raise CheckpointError(
                    f"{files.path}: the weights of tensor-parallel rank {rank} of stage {stage} are missing",
                    hint="fetch every mp_rank_* or tp_rank_*_pp_rank_* folder of the model",
                )
    return stages


def _tensors(files: Files, name: str) -> dict[str, Laid]:
    saved = read_saved(files.extent(name))
    if not isinstance(saved, dict):
        raise CheckpointError(f"{files.path}: `{name}` is no dictionary of tensors", hint=_WHOLE)
    found: dict[str, Laid] = {}
    for key, value in dict.items(saved):
        if isinstance(value, Unreadable):
            raise CheckpointError(f"{files.path}: `{key}` of `{name}`: {value.why}", hint=_WHOLE)
        if isinstance(key, str) and isinstance(value, Stored):
            found[_renamed(key)] = laid(value)
    return found


def _renamed(key: str) -> str:
    for old, new in _OLD:
        key = key.replace(old, new)
    return key


def _merged(files: Files, key: str, ranks: list[dict[str, Laid]]) -> Laid:
    if any(key not in rank for rank in ranks):
        raise CheckpointError(f"{files.path}: `{key}` is not in the weights of every rank", hint=_WHOLE)
    parts = [rank[key] for rank in ranks]
    up = key.replace(".linear_fc1.", _OLD_UP)
    if len(parts) == 1 or _ALIKE.search(key):
        return parts[0]
    if ".linear_fc1." in key and up not in ranks[0] and _gated(key, ranks[0]):
        halves = [part.split([part.dims[0] // 2] * 2) for part in parts]
        return joined([gate for gate, _ in halves] + [up for _, up in halves])
    if _ROWS.search(key) or _OLD_UP in key:
        return joined(parts)
    if _COLUMNS.search(key):
        return joined(parts, dim=1)
    raise CheckpointError(
        f"{files.path}: it is not known how tensor-parallel ranks share `{key}`",
        hint="merge the ranks with NeMo's change_tensor_parallel script (tensor_parallel_size=1)",
    )


def _gated(key: str, tensors: dict[str, Laid]) -> bool:
    """Whether the MLP's first product has twice the rows that its second has columns: gates, then values."""
    stem = key.partition(".linear_fc1.")[0]
    down = tensors.get(f"{stem}.linear_fc2.weight")
    return down is not None and tensors[key].dims[0] == 2 * down.dims[1]
