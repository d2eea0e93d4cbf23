"""The fastest that a machine could answer: what a step must move and compute, at rates that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.backends.artifact import EngineReader
from irloom.backends.machine import cpu_name, memory, read_bandwidth
from irloom.ir.cost import plan, predicted_seconds
from irloom.ir.device import Device

from .llm import LLM
from .load import Load


@dataclass(frozen=True)
class Roofline:
    """Bounds for one request alone: decoded tokens a second, and seconds until its first token.

    ``first_token_s`` is None where no rate of products was measured.
    """

    device: Device
    decode_per_s: float
    first_token_s: float | None


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
    """The bounds of an engine: its weights and caches read once a step, at the device's bandwidth.

    An engine that counts what its steps read (``bytes_read``: its weights) is believed; of others the final
    program is priced, halfway through the answer.
    """
    module = EngineReader(llm.folder).module()
    halfway = load.prompt_tokens + load.new_tokens // 2
    read = getattr(llm.engine, "bytes_read", None) or plan(module).decode(halfway).bytes
    n = load.prompt_tokens
    first = predicted_seconds(module, device, n, 1, n).total if device.flops else None
    return Roofline(device, device.bandwidth / read, first)
