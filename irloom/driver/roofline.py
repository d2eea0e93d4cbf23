"""The fastest that a machine could answer: what a step must move and compute, at rates that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.backends.machine import cpu_name, memory, read_bandwidth
from irloom.ir.cost import plan, predicted_seconds
from irloom.ir.device import Device
from irloom.ir.graph import Module

from .llm import LLM
from .load import Load


@dataclass(frozen=True)
class Roofline:
    """Bounds for one request alone: decoded tokens a second, and seconds until its first token. For all
    together, answered tokens a second: prompts one by one, then steps of as many as are served at once.

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
    """The bounds of a final program: its weights and caches read once a step, at the device's bandwidth.

    A step is one halfway through the answer; ``read`` are the bytes of one alone, where that is known.
    """
    halfway, n, together = load.prompt_tokens + load.new_tokens // 2, load.prompt_tokens, load.at_once
    read = read or plan(module).decode(halfway).bytes
    if not device.flops:
        return Roofline(device, device.bandwidth / read, None, None)
    first = predicted_seconds(module, device, n, 1, n).total
    step = predicted_seconds(module, device, together, together, halfway).total
    output = load.new_tokens / (first + load.new_tokens * step / together)
    return Roofline(device, device.bandwidth / read, first, output)
