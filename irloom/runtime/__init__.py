"""In-flight batching: requests, pages, scheduler, sampler, loop. Device-free; talks to an ``Engine``."""

from irloom.ir.plan import Pool
from irloom.runtime.answer import Delta, Output
from irloom.runtime.core import Batch, Chosen, Engine, Overlapped, Pending, Sampled, SamplingRow
from irloom.runtime.loop import Loop, Prompt, Stats
from irloom.runtime.request import FinishReason, SamplingParams

__all__ = [
    "Batch",
    "Chosen",
    "Delta",
    "Engine",
    "FinishReason",
    "Loop",
    "Output",
    "Overlapped",
    "Pending",
    "Pool",
    "Prompt",
    "Sampled",
    "SamplingParams",
    "SamplingRow",
    "Stats",
]
