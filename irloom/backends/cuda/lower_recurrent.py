"""Lowering of recurrences: kernels that go on from the states of a cache, and renew them in place."""

from __future__ import annotations

from irloom.ir.elem import SEQS, Cached
from irloom.ir.graph import Arg, Node

from .lower import Lowering, floats, lowers

SCANS = ("carried_token_shift", "carried_linear_scan", "carried_selective_scan", "carried_wkv")
MATRICES = ("carried_ssd_scan", "carried_gated_delta", "carried_gated_linear_attention", "carried_mlstm")


@lowers("carried_causal_conv")
def causal_conv(f: Lowering, n: Node) -> bool:
    """With the activation that alone reads its result."""
    x, weight, seqs, cache, bias = [*n.args, None][:5]
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    y, renewed = n.results
    act = f.only_reader(y)
    if act is None or act.op.name != "silu":
        return f.launch(n.op.name, n, x, weight, cache, seqs, bias)
    f.folded.add(id(act))
    return f.launch(
        n.op.name, n, x, weight, cache, seqs, bias, results=[act.result, renewed], attrs={"act": "silu"}
    )


@lowers(*SCANS)
def scan(f: Lowering, n: Node) -> bool:
    """A state whose entries do not mix."""
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    return f.launch(n.op.name, n, *_operands(n))


@lowers(*MATRICES)
def matrix(f: Lowering, n: Node) -> bool:
    """A state that maps keys to values."""
    if not _runs(n):
        return f.decline(n, "an element that is no float")
    return f.launch(n.op.name, n, *_operands(n), attrs=n.attrs, given=("work",))


def _operands(n: Node) -> list[Arg]:
    """As launchers take them: what the op is about, the cache, the step."""
    *given, seqs, cache = n.args
    return [*given, cache, seqs]


def _runs(n: Node) -> bool:
    """Whether all tensors are of floats, states too."""
    for v in n.values:
        if isinstance(v.type.elem, Cached):
            if v.type.elem.elem.name not in ("bf16", "f16", "f32"):
                return False
        elif v.type.elem != SEQS and not floats(v):
            return False
    return True
