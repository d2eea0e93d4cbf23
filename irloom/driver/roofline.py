"""The fastest that a machine could answer: what a step must move and compute, at rates that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.backends.machine import cpu_name, memory, read_bandwidth
from irloom.ir.cost import computed_in, node_cost, step_nodes
from irloom.ir.device import Device
from irloom.ir.dims import evaluate
from irloom.ir.elem import Paged, State
from irloom.ir.graph import Module, Node, Param, Value

from .llm import LLM
from .load import Load


@dataclass(frozen=True)
class Roofline:
    """Bounds for one request alone: decoded tokens a second, and seconds until its first token. For all
    together, answered tokens a second: the prompts of as many as are served at once, then their steps.

    ``first_token_s`` and ``output_per_s`` are None where no rate of products was measured.
    """

    device: Device
    decode_per_s: float
    first_token_s: float | None
    output_per_s: float | None


def measured(target: str) -> Device | None:
    """What ``target`` runs on, with rates measured here and now; None for a target nobody has a probe for.

    A GPU must have room for the probe: this comes before an engine takes its memory.
    """
    if target == "cuda":
        from irloom.backends.cuda.card import measured_card

        return measured_card()
    if target in ("cpu", "onnx"):
        return Device("cpu", read_bandwidth(), {}, memory(), f"measured on {cpu_name()}")
    return None


def roofline(llm: LLM, device: Device, load: Load) -> Roofline:
    """The bounds of an engine that is open; one that counts what its steps read (``bytes_read``: its
    weights) is believed.
    """
    return bounds(llm.reader.module(), device, load, getattr(llm.engine, "bytes_read", None))


def bounds(module: Module, device: Device, load: Load, read: int | None = None) -> Roofline:
    """The bounds of a final program. A step that decodes is one halfway through the answer; ``read`` are the
    bytes of one alone, where that is known.
    """
    halfway, n, together = load.prompt_tokens + load.new_tokens // 2, load.prompt_tokens, load.at_once
    read = read or sum(least_bytes(node, 1, 1, halfway) * k for node, k in step_nodes(module))
    if not device.flops:
        return Roofline(device, device.bandwidth / read, None, None)
    prompts = least_seconds(module, device, n * together, together, n)
    step = least_seconds(module, device, together, together, halfway)
    output = together * load.new_tokens / (prompts + (load.new_tokens - 1) * step)
    return Roofline(device, device.bandwidth / read, least_seconds(module, device, n, 1, n), output)


def least_seconds(module: Module, device: Device, tokens: int, seqs: int, context: int) -> float:
    """How long a step takes at least, one op after another: each moves its weights and what it reads and
    writes of caches, or computes, whichever takes longer. All else may stay on the chip between kernels.

    The step is one of ``ir.cost.Plan.step``: ``tokens`` in equal parts over ``seqs`` of ``context``.
    """

    def seconds(n: Node) -> float:
        flops = node_cost(n, tokens, seqs, context).flops / device.rate(computed_in(n))
        return max(flops, least_bytes(n, tokens, seqs, context) / device.bandwidth)

    return sum(seconds(n) * times for n, times in step_nodes(module))


def least_bytes(n: Node, tokens: int, seqs: int, context: int) -> int:
    """Bytes of an op that no fusion saves: those of its weights and caches."""
    env = {"T": tokens, "S": seqs}
    passing = (v.type.nbytes for v in (*n.values, *n.results) if not _lies_in_memory(v))
    moved = node_cost(n, tokens, seqs, context).bytes
    return max(0, moved - sum(evaluate(size, env) for size in passing))


def _lies_in_memory(v: Value) -> bool:
    return isinstance(v.type.elem, Paged | State) or (isinstance(v, Param) and v.weight is not None)
