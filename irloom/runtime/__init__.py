"""In-flight batching: requests, pages, scheduler, sampler, loop. Device-free; talks to an ``Engine``."""

from irloom.ir.plan import Pool
from irloom.runtime.answer import Delta, Output
from irloom.runtime.core import Batch, Engine, Sampled, SamplingRow
from irloom.runtime.loop import Loop, Prompt, Stats
from irloom.runtime.request import FinishReason, SamplingParams

__all__ = [
    "Batch",
    "Delta",
    "Engine",
    "FinishReason",
    "Loop",
    "Output",
    "Pool",
    "Prompt",
    "Sampled",
    "SamplingParams",
    "SamplingRow",
    "Stats",
]
