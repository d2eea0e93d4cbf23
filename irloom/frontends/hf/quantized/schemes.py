"""What a ``quantization_config`` says of a file's weights, and the checkpoint in which they are plain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irloom.frontends.hf.quantized.core import Dequantized, Packed
from irloom.frontends.hf.quantized.fp4 import fp4
from irloom.frontends.hf.quantized.integers import integers
from irloom.frontends.hf.quantized.scaled import Block, scaled
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import CheckpointError

READ = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq")
_NOT_WEIGHTS = (
    "input_scale", "output_scale", "q_scale", "k_scale", "v_scale", "input_global_scale", "activation_scale",
    "input_zero_point", "input_scale_ub", "activation_scale_ub",
)  # fmt: skip
"""How activations and caches would be rounded while a model runs: nothing that a weight is made of."""

Fields = Mapping[str, Any]


def dequantized(raw: Checkpoint, fields: Fields) -> Checkpoint:
    """``raw``, stored as the ``quantization_config`` ``fields`` say, with plain weights in f32.

    ``CheckpointError`` for a method that is not read, and for tensors that are not as it stores them.
    """
    method = str(fields.get("quant_method", "unknown method"))
    if method not in READ:
        raise _refused(raw, method)
    packed: dict[str, Packed] = {}
    if method in {"gptq", "awq"}:
        packed |= integers(raw, method, *_bits(raw, fields))
    else:
        _plain_rotations(raw, fields)
        packed |= {**scaled(raw, _blocks(fields)), **fp4(raw)}
        packed |= integers(raw, "compressed-tensors", _group_bits(raw, fields))
    names = [name for name in raw.names() if name.rpartition(".")[2] in _NOT_WEIGHTS]
    return Dequantized(raw, packed, names)


def _refused(raw: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{raw.path}: its weights are stored quantized ({what})",
        hint="use the unquantized checkpoint and irloom's own `quantize` pass",
    )


def _groups(fields: Fields) -> list[Fields]:
    """The ``weights`` of each config group of compressed-tensors."""
    groups: Any = fields.get("config_groups")
    found = [g.get("weights") for g in groups.values()] if isinstance(groups, Mapping) else []
    return [w for w in found if isinstance(w, Mapping)]


def _blocks(fields: Fields) -> list[Block]:
    """Sizes of the blocks and groups that share a scale."""
    stated = [fields.get("weight_block_size"), *(g.get("block_structure") for g in _groups(fields))]
    pairs = [tuple(b) for b in stated if isinstance(b, list | tuple)]
    blocks = [(b[0], b[1]) for b in pairs if len(b) == 2 and all(isinstance(n, int) and n > 0 for n in b)]
    sizes = [g.get("group_size") for g in _groups(fields)]
    return [*blocks, *((1, size) for size in sizes if isinstance(size, int) and size > 0)]


def _group_bits(raw: Checkpoint, fields: Fields) -> int:
    """Bits of packed integers: one number for the whole file."""
    packed = str(fields.get("format")) in {"pack-quantized", "mixed-precision"}
    stated = list(dict.fromkeys(g.get("num_bits") for g in _groups(fields))) if packed else [4]
    if len(stated) != 1 or stated[0] not in {2, 4, 8}:
        raise _refused(raw, f"packed integers of {' and '.join(map(str, stated))} bits")
    return stated[0]


def _plain_rotations(raw: Checkpoint, fields: Fields) -> None:
    """Weights that were rotated or made sparse on the way are not what they stand for."""
    if fields.get("transform_config"):
        raise _refused(raw, "with rotations, `transform_config`")
    sparse: Any = fields.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        raise _refused(raw, f"sparse, {sparse.get('format')}")


def _bits(raw: Checkpoint, fields: Fields) -> tuple[int, int]:
    """Bits of a code, and what its zeros are stored less."""
    bits, awq = fields.get("bits", 4), fields.get("quant_method") == "awq"
    if bits not in ({4} if awq else {2, 4, 8}) or (awq and fields.get("version", "gemm") != "gemm"):
        raise _refused(raw, f"{fields.get('quant_method')} of {bits} bits, {fields.get('version', '')}")
    return bits, 0 if fields.get("checkpoint_format") == "gptq_v2" else 1
