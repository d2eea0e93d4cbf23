"""Elements of values and caches that no kernel for the CPU reads: refused before anything is lowered."""

from __future__ import annotations

from irloom.ir.elem import Cached, Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.show import show_typed

FLOATS = ("f32", "bf16", "f16")


def refuse_elements(m: Module) -> None:
    """``IRError`` for rows that are quantized, and for a cache in another element than kernels read."""
    for f in m.funcs.values():
        for v in (*f.data, *(r for n in f.nodes for r in n.results)):
            if isinstance(v.type.elem, Quant):
                raise IRError(
                    f"cpu: {show_typed(v)}, {v.type.elem.declaration()}: no kernel reads such rows",
                    hint="quantize(int8), whose kernels round rows by themselves, or --target reference",
                )
            if isinstance(v.type.elem, Cached) and v.type.elem.elem.name not in FLOATS:
                raise IRError(
                    f"cpu: {show_typed(v)}: kernels read caches of {', '.join(FLOATS)}",
                    hint="kv-cache(elem=bf16), or --target reference",
                )
