"""How many pages an engine has: for as many sequences as asked, as far as the memory for caches reaches."""

from __future__ import annotations

from dataclasses import replace

from irloom.backends.core import Limits
from irloom.backends.machine import memory
from irloom.ir.errors import PipelineError, RequestError
from irloom.ir.graph import Module
from irloom.ir.plan import KVPlan, Pool, kv_plan

SNAPSHOTS = 2
"""Slots of a pool of states for every sequence beside its own: what prefixes can go on from."""


def cache_plan(m: Module) -> KVPlan:
    """The caches of a module that an engine is to run; ``PipelineError`` where it has none."""
    plan = kv_plan(m)
    if not plan.groups:
        raise PipelineError(
            f"{m.model or 'the program'}: it has no cache, so it cannot continue a sequence",
            hint="a pipeline for an engine ends in kv-cache, kv-plan",
        )
    return plan


def pools(m: Module, limits: Limits, max_context: int, plan: KVPlan | None = None) -> tuple[Pool, ...]:
    """The pools of a module under ``limits``; ``RequestError`` where not even one sequence fits.

    All get the pages of one sequence of ``max_context`` tokens, and the same share of what more sequences
    and their snapshots would need. ``plan`` is given where the module's is not what the engine stores.
    """
    plan, chunk = plan or cache_plan(m), limits.max_tokens
    one = plan.pools(max_context, 1, chunk)
    every = tuple(
        _with_snapshots(p, limits.max_seqs, max_context)
        for p in plan.pools(max_context, limits.max_seqs, chunk)
    )
    given = limits.memory if limits.memory is not None else memory() // 4
    least, most = _bytes(one), _bytes(every)
    if given < least:
        raise RequestError(
            f"memory for caches is {given:,} bytes, but one sequence of {max_context} tokens needs {least:,}",
            hint="give more memory, or a smaller max_context",
        )
    share = min(1.0, (given - least) / (most - least)) if most > least else 1.0
    return tuple(
        replace(a, pages=a.pages + int((b.pages - a.pages) * share)) for a, b in zip(one, every, strict=True)
    )


def _with_snapshots(pool: Pool, seqs: int, context: int) -> Pool:
    most = seqs * (context // pool.page)  # those that sequences leave behind
    return replace(pool, pages=pool.pages + min(seqs * SNAPSHOTS, most)) if pool.cut else pool


def _bytes(made: tuple[Pool, ...]) -> int:
    return sum(p.pages * p.page_bytes for p in made)
