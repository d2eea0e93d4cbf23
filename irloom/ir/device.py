"""Devices that a model may run on: memory, bandwidth, and FLOP/s by element, as their makers state them.

Dense figures, without structured sparsity, at boost clocks: a bound that no program passes. What one reaches
is less; on one H200 a copy ran at 4.26 of the 4.8 TB/s, a bf16 product at 779 of the 989 TFLOP/s. So a device
may be written with figures of its own: ``h200(bandwidth=4.3TB, bf16=790T)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from .elem import ELEMS, Elem
from .errors import IRError
from .plan import read_bytes

GB, TERA = 10**9, 10**12


@dataclass(frozen=True)
class Device:
    """``bandwidth`` in bytes/s, ``flops`` in FLOP/s by the name of an element, ``memory`` in bytes.

    A multiply-add counts two. ``source`` says whose figures these are.
    """

    name: str
    bandwidth: float
    flops: dict[str, float]
    memory: int
    source: str = ""

    def rate(self, elem: Elem) -> float:
        """FLOP/s in ``elem``; where the device cannot compute in it, in the next wider one that it can.

        >>> device("a100").rate(ELEMS["f8e4m3"]) == device("a100").flops["bf16"]
        True
        """
        wider = sorted((e for e in ELEMS.values() if e.bits >= elem.bits), key=lambda e: e.bits)
        same = [e.name for e in wider if e.kind == elem.kind]
        floats = [e.name for e in wider if e.kind == "float" and e.bits >= 16]
        return next(
            (self.flops[e] for e in (elem.name, *same, *floats) if e in self.flops), self.flops["f32"]
        )


def _card(name: str, gigabytes_a_second: float, gigabytes: int, source: str, **teraflops: float) -> Device:
    """A row of the table; ``f8`` and ``half`` stand for both elements of that width."""
    pairs = {"half": ("bf16", "f16"), "f8": ("f8e4m3", "f8e5m2")}
    flops = {e: rate * TERA for key, rate in teraflops.items() for e in pairs.get(key, (key,))}
    return Device(name, gigabytes_a_second * GB, flops, gigabytes * GB, source)


_AMPERE = "NVIDIA A100 Tensor Core GPU datasheet, 2021"
_HOPPER = "NVIDIA H100 datasheet, 2023, and architecture whitepaper, table 2"
_ADA = "NVIDIA Ada GPU architecture whitepaper, 2022, appendix A, sums in f32"
_RTX = "NVIDIA RTX Blackwell GPU architecture whitepaper, 2025, appendix A, sums in f32"
_ROWS = (
    # GB/s, GB, then TFLOP/s
    _card("a100-40gb", 1555, 40, _AMPERE, f32=19.5, half=312, i8=624, i4=1248),
    _card("a100", 2039, 80, _AMPERE, f32=19.5, half=312, i8=624, i4=1248),
    _card("a100-pcie", 1935, 80, _AMPERE, f32=19.5, half=312, i8=624, i4=1248),
    _card("h100", 3350, 80, _HOPPER, f32=66.9, half=989.4, f8=1978.9, i8=1978.9),
    _card("h100-pcie", 2039, 80, _HOPPER, f32=51.2, half=756.5, f8=1513, i8=1513),
    _card("h200", 4800, 141, "NVIDIA H200 datasheet, 2024", f32=66.9, half=989.4, f8=1978.9, i8=1978.9),
    _card("b200", 8000, 180, "NVIDIA HGX B200 datasheet, 2025", f32=75, half=2250, f8=4500, i8=4500),
    _card("l4", 300, 24, "NVIDIA L4 datasheet, 2023", f32=30.3, half=121, f8=242.5, i8=242.5),
    _card("l40s", 864, 48, "NVIDIA L40S datasheet, 2023", f32=91.6, half=362, f8=733, i8=733),
    _card("rtx4090", 1008, 24, _ADA, f32=82.6, half=165.2, f8=330.3, i8=660.6, i4=1321.2),
    _card("rtx5090", 1792, 32, _RTX, f32=104.8, half=209.5, f8=419, i8=838),
    _card("mi300x", 5300, 192, "AMD MI300X datasheet, 2023", f32=163.4, half=1307.4, f8=2614.9, i8=2614.9),
    _card("orin", 204.8, 64, "NVIDIA Jetson AGX Orin 64GB, the GPU alone, 2023", f32=5.3, half=42.5, i8=85),
    _card("thor", 273, 128, "NVIDIA Jetson T5000 datasheet, 2025", f32=8.1, half=258.5, f8=517, i8=517),
)
DEVICES: dict[str, Device] = {d.name: d for d in _ROWS}
"""Known devices by name. A bare name is the 80 GB or SXM form."""


def device(text: str) -> Device:
    """The device that ``text`` names, with figures of its own if it gives some; ``IRError`` if there is none.

    >>> device("H200(bandwidth=4.3TB, bf16=790T)").flops["bf16"]
    790000000000000
    """
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
    name = found[1].lower() if found else text
    if not found or name not in DEVICES:
        near = get_close_matches(name, [*DEVICES, "cpu"], 1)
        known = f"known: {', '.join(DEVICES)}, and cpu for this machine"
        raise IRError(f"no device {text!r}", hint=f"did you mean {near[0]!r}?" if near else known)
    return with_figures(DEVICES[name], found[2] or "")


def with_figures(d: Device, text: str) -> Device:
    """``d`` with the figures in ``text``: ``bandwidth=4.3TB, bf16=790T, memory=80GB``."""
    flops, sizes = dict(d.flops), {"bandwidth": d.bandwidth, "memory": d.memory}
    for item in filter(None, map(str.strip, text.split(","))):
        key, _, value = map(str.strip, item.partition("="))
        if key not in sizes and key not in ELEMS:
            raise IRError(f"device {d.name}: no figure {key!r}", hint=f"it has {', '.join([*sizes, *flops])}")
        figure = read_bytes(value.removesuffix("/s").rstrip("bB") + "B")
        if not figure:
            raise IRError(f"device {d.name}: {key} is 0", hint="such as 4.3TB")
        (sizes if key in sizes else flops)[key] = figure
    source = f"{d.source}; {text}" if text else d.source
    return replace(d, **sizes, flops=flops, source=source)
