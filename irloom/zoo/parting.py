"""Where a program parts from the library's model: the first block whose output it does not compute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.trace_errors import place_of
from irloom.ir.graph import Module, Node, Value
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.zoo.models import Specimen
from irloom.zoo.serve import relative


@dataclass(frozen=True)
class _Computed:
    """A value of the program, the place that it is traced from, and those of what uses it."""

    loc: str
    users: list[str]
    value: Tensor

    def leaves(self, path: str) -> bool:
        """Whether the block at ``path`` computes it for others."""
        return _inside(self.loc, path) and not all(_inside(user, path) for user in self.users)


def parting(specimen: Specimen, module: Module, parts: Sequence[Tensor], tolerance: float) -> str:
    """``in model.layers.0.mlp (LlamaMLP), modeling_llama.py:155``, or nothing where no block can be told.

    ``parts`` are the ids of the sequences, which the program takes in one batch. Blocks are asked in the
    order in which they end, inner ones first. One agrees if its output is among the values that leave it in
    the program, in whatever order of dims. Where none of those has as many numbers, nothing is known.
    """
    values = _values(specimen, module, parts)
    for path, wanted in _outputs(specimen, parts):
        made = [x for x in values if x.value.numel() == wanted.numel() and x.leaves(path)]
        if made and all(_apart(x.value, wanted) > tolerance for x in made):
            return _place(specimen.model, made[-1].loc)
    return ""


def _apart(found: Tensor, wanted: Tensor) -> float:
    found, wanted = (x.float().flatten().sort().values for x in (found, wanted))
    return relative(found, wanted, wanted)


def _values(specimen: Specimen, module: Module, parts: Sequence[Tensor]) -> list[_Computed]:
    """Every tensor of floats that the program computes."""
    users: dict[Value, list[str]] = defaultdict(list)
    for node in module.main.nodes:
        for value in node.values:
            users[value].append(node.loc)
    for value in module.main.returns:
        users[value].append("")
    seen: list[_Computed] = []

    def observe(node: Node, results: tuple[Any, ...], layer: int | None) -> None:
        for value, x in zip(node.results, results, strict=True):
            if isinstance(x, Tensor) and x.is_floating_point():
                seen.append(_Computed(node.loc, users[value], x))

    with torch.inference_mode():
        run = Interpreter(module, LiveCheckpoint(specimen.model), observe=observe)
        run(torch.cat(list(parts)).int(), Seqs.of([len(part) for part in parts]))
    return seen


def _outputs(specimen: Specimen, parts: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What each block of the model gives for all the sequences: its path and rows of tokens."""
    found: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for part in parts:
        calls: dict[str, int] = defaultdict(int)

        def record(path: str, out: Any, length: int = len(part), calls: dict[str, int] = calls) -> None:
            out = out[0] if isinstance(out, tuple) and out else out
            if isinstance(out, Tensor) and out.is_floating_point() and out.shape[:2] == (1, length):
                found[path, calls[path]].append(out[0].clone())
            calls[path] += 1

        hooks = [
            m.register_forward_hook(lambda m, given, out, path=path, record=record: record(path, out))
            for path, m in specimen.model.named_modules()
            if path
        ]
        try:
            specimen.logits(part)
        finally:
            for hook in hooks:
                hook.remove()
    for (path, _), rows in found.items():
        if len(rows) == len(parts):
            yield path, torch.cat(rows)


def _inside(loc: str, path: str) -> bool:
    return f"{loc.partition(' ')[0]}.".startswith(f"{path}.")


def _place(model: nn.Module, loc: str) -> str:
    path, _, line = loc.partition(" ")
    file, _, number = line.rpartition(":")
    block = place_of(model, path, file, int(number or 0))
    return f"in {block.path} ({block.block}), {PurePath(file).name}:{number}"
