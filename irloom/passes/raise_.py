"""Find in the tensor ops of a traced model the model ops that they spell out.

- Computation on weights alone, such as the ``1 + w`` of a norm or a transposed matrix, becomes part of the
weight.
- ``rms_norm`` and ``layer_norm``, with their weights and their casts to f32 and back; ``gelu`` and ``silu``.
- ``rope``, in whatever spelling: the region before an attention is proved equal to it on random numbers.
Frequencies
  that are the default of a ``theta`` become that attribute, others stay a constant operand.

In f32 results move by rounding only. In 16 bits a norm rounds once instead of after each step.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Func, Module
from irloom.ir.op import OPS

from . import raise_block
from .core import Changes, Pass
from .dedupe import drop, share_consts
from .draft import Draft, op_of
from .fold_weights import fold_weights
from .raise_activation import Activations
from .raise_norm import RULES
from .raise_rope import Rotations
from .raise_router import Routers
from .rewrite import apply

NAMED = ("rms_norm", "layer_norm")
"""Ops that are a whole module of the source model, and are called as it is."""


@dataclass(frozen=True)
class Raise(Pass):
    """No options."""

    after = ("canonicalize",)
    before = ("outline", "fuse-norm", "fuse-mlp", "fuse-qkv", "kv-cache", "quantize")

    def run(self, m: Module) -> Changes:
        changes = Changes()
        for f in m.funcs.values():
            changes += fold_weights(f)
        changes += apply(m, (*RULES, *raise_block.RULES))
        for f in m.funcs.values():
            changes += fold_weights(f)
            changes += Rotations(m, f).run()
            changes += Routers(m, f).run()
            changes += Activations(m, f).run()
            changes += drop(f)
            changes += _name_after_modules(f)
        changes += share_consts(m)
        return changes


def _name_after_modules(f: Func) -> Changes:
    """A norm is called as its module (``input_layernorm``) instead of as its last op (``mul_7``)."""
    draft, changes = Draft(f), Changes()
    for n in f.nodes:
        path = n.loc.partition(" ")[0].rpartition(".")[2]
        if n.op.name in NAMED and op_of(n.results[0].name) and path.isidentifier() and path not in OPS:
            changes.places.append(f"{f.name}.{n.result.name}: called {path}, as its module")
            draft.rename(n.result, draft.builder([], "").fresh(path))
    return changes
