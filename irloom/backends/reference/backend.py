"""The reference target: an engine that interprets its module, op by op, in torch. Slow, and right everywhere.

It needs no compiler, and computes what every other target is compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from irloom.backends.artifact import EngineReader, EngineWriter
from irloom.backends.caches import empty_caches
from irloom.backends.core import START, Limits, Report
from irloom.backends.pools import cache_plan, pools
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import CACHES, Cached
from irloom.ir.graph import Func, Module, Param
from irloom.ir.interp import Interpreter
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.seqs import Seqs
from irloom.ir.show import show
from irloom.ir.weights import materialize
from irloom.runtime.core import Batch, Engine, Sampled
from irloom.runtime.sampler import sample_batch

WEIGHTS = "weights.safetensors"


class ReferenceBackend:
    """See ``backends.core.Backend``."""

    name = "reference"
    dtype = "f32"
    later: tuple[str, ...] = ()
    pipeline = (
        *START,
        "kv-cache",
        "kv-plan",
    )

    def lacks(self) -> None:
        """Nothing: it is torch."""

    def lowered(self, m: Module) -> str:
        """The module itself: it is what runs."""
        return show(m)

    def fallbacks(self, m: Module) -> dict[str, int]:
        """All that there is."""
        return dict(Counter(n.op.name for f in m.funcs.values() for n in f.nodes))

    def declined(self, m: Module) -> dict[str, str]:
        """There are no kernels."""
        return {}

    def fingerprint(self) -> dict[str, str]:
        """Torch runs it everywhere."""
        return {}

    def prepare(self) -> None:
        """Nothing is needed."""

    def build(self, m: Module, checkpoint: Checkpoint, out: EngineWriter, report: Report) -> None:
        """The module, and its weights as its functions take them."""
        from safetensors.torch import save_file

        out.write_program(m, cache_plan(m))
        named = list(bound(m))
        tensors: dict[str, torch.Tensor] = {}
        for done, (name, p, layer) in enumerate(named):
            report("weights", done, len(named))
            assert p.weight is not None
            value = materialize(p.weight, checkpoint, layer, m.consts)
            tensors[name] = (
                (value.dequantize() if isinstance(value, QuantizedTensor) else value).contiguous().clone()
            )
        save_file(tensors, out.file(WEIGHTS))
        report("weights", len(named), len(named))

    def wake(self) -> None:
        """Nothing is needed."""

    def open(self, engine: EngineReader, limits: Limits) -> Engine:
        """An engine over the interpreter."""
        m = engine.module()
        max_context = limits.context(int(engine.manifest.settings["max_context"]))
        return ReferenceEngine(m, engine, limits, max_context)


def bound(m: Module) -> list[tuple[str, Param, int | None]]:
    """Every weight as it is called for: a name, the parameter, the layer."""
    calls: dict[str, set[int | None]] = {"main": {None}}
    for c, layer, _ in m.calls():
        calls.setdefault(c.callee, set()).add(layer)

    def layers(f: Func) -> list[int | None]:
        return sorted(calls.get(f.name, ()), key=lambda i: -1 if i is None else i)

    return [(f"{f.name}.{p.name}.{i}", p, i) for f in m.funcs.values() for p in f.weights for i in layers(f)]


class ReferenceEngine:
    """Steps of a module under the interpreter."""

    def __init__(self, m: Module, engine: EngineReader, limits: Limits, max_context: int) -> None:
        from safetensors import safe_open

        self.pools, self.max_context = pools(m, limits, max_context), max_context
        self.max_tokens, self.max_seqs = limits.max_tokens, limits.max_seqs
        vocab = m.main.returns[0].type.dims[1]
        assert isinstance(vocab, int)
        self.vocab = vocab
        file = safe_open(engine.file(WEIGHTS), framework="pt")
        names = {(id(p), layer): name for name, p, layer in bound(m)}
        self.interpreter = Interpreter(m, weights=lambda p, layer: file.get_tensor(names[id(p), layer]))
        self.inputs = [p for p in m.main.data if isinstance(p.type.elem, Cached) or p.type.elem == CACHES]
        self.caches = empty_caches(m, {p.name: p.pages for p in self.pools})

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values; the logits [S, vocab] of each sequence's last token."""
        tables = {p.name: torch.from_numpy(t) for p, t in zip(self.pools, batch.tables, strict=True)}
        positions, starts = torch.from_numpy(batch.positions), torch.from_numpy(batch.starts)
        seqs = Seqs(positions, starts, torch.from_numpy(batch.context), tables)
        given = [self.caches[p.name] for p in self.inputs]
        with torch.inference_mode():
            logits, *renewed = self.interpreter(torch.from_numpy(batch.tokens), seqs, *given)
        self.caches.update((p.name, c) for p, c in zip(self.inputs, renewed, strict=True))
        return logits

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        return sample_batch(self.logits(batch), batch)


BACKEND = ReferenceBackend()
