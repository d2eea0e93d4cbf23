"""Time of the CPU kernels beside torch's, and their share of the machine's read bandwidth.

``python benchmarks/kernels.py [--threads N] [--repeat N] [--only PART] [--cpu-time]``

Every line interleaves the kernel, its peer and a read of 256 MB, and shows medians, so that other work on the
machine moves all of them alike. ``--cpu-time`` counts the calling thread's own time instead, with one thread:
what a busy machine can still measure. ``bandwidth`` is the kernel's bytes per second over the read's. Decode
weights are larger than any cache; ``torch`` is fp32 ``F.linear`` (MKL), or ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter, thread_time

import torch
import torch.nn.functional as F

from irloom.backends.cpu.native import Kernels, load_kernels
from irloom.backends.cpu.pack import Packed, allocate, pack, pack_quantized

Run = Callable[[], object]
Clock = Callable[[], float]


def medians(runs: list[Run], repeat: int, clock: Clock, inner: int = 1) -> list[float]:
    """Median seconds of each, run in turns after one warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeat):
        for mine, run in zip(times, runs, strict=True):
            start = clock()
            for _ in range(inner):
                run()
            mine.append((clock() - start) / inner)
    return [statistics.median(mine) for mine in times]


def weights(n: int, k: int) -> dict[str, Packed]:
    """One weight in every kind, f16 scales."""
    w = torch.randn(n, k)
    found = {"f32": pack(w), "bf16": pack(w.bfloat16())}
    for bits, group in ((8, 32), (4, 32), (4, 128)):
        q = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (n, k), dtype=torch.int8)
        found[f"i{bits}g{group}"] = pack_quantized(
            q, torch.rand(n, k // group).half(), bits=bits, group=group
        )
    return found


def decode(kernels: Kernels, repeat: int, clock: Clock) -> None:
    """One row: bound by reading the weight."""
    probe = allocate(256 << 20)
    probe.fill_(0)
    print(f"{'decode linear':<24}{'kind':<8}{'ms':>9}{'GB/s':>8}{'bandwidth':>11}{'x torch fp32':>14}")
    for n, k in ((262144, 640), (4096, 14336), (14336, 4096)):
        plain, x, y = torch.randn(n, k), torch.randn(1, k), torch.empty(1, n)
        for kind, weight in weights(n, k).items():
            runs: list[Run] = [
                partial(kernels.linear, weight, x, y),
                partial(kernels.raw.read, probe.data_ptr(), probe.nbytes),
                partial(F.linear, x, plain),
            ]
            mine, read, peer = medians(runs, repeat, clock)
            rate = weight.layout.bytes / mine
            share = rate / (probe.nbytes / read)
            shown = f"{mine * 1e3:9.2f}{rate / 1e9:8.1f}{share:11.0%}{peer / mine:14.1f}"
            print(f"{f'{n} x {k}':<24}{kind:<8}{shown}")


def product(kernels: Kernels, repeat: int, clock: Clock) -> None:
    """Several rows: bound by arithmetic."""
    print(
        f"{'linear':<24}{'rows':<6}"
        + "".join(f"{kind:>16}" for kind in ("torch f32", "f32", "bf16", "i8g32", "i4g32"))
    )
    for n, k in ((2048, 640), (4096, 4096)):
        plain = torch.randn(n, k)
        kinds = [weight for kind, weight in weights(n, k).items() if kind != "i4g128"]
        for rows in (4, 16, 64, 512):
            x, y = torch.randn(rows, k), torch.empty(rows, n)
            runs: list[Run] = [
                partial(F.linear, x, plain),
                *[partial(kernels.linear, w, x, y) for w in kinds],
            ]
            times = medians(runs, repeat, clock, max(1, int(5e8 / (2 * rows * n * k))))
            shown = [f"{2e-9 * rows * n * k / t:8.0f} GF {times[0] / t:3.1f}x" for t in times]
            print(f"{f'{n} x {k}':<24}{rows:<6}" + "".join(f"{text:>16}" for text in shown))


def attention(kernels: Kernels, repeat: int, clock: Clock) -> None:
    """Queries at the end of a context of each of several sequences."""
    print(f"{'attention':<44}{'us':>9}{'GFLOP/s':>9}{'x torch':>9}")
    for s, t, context, h, kv, d in (
        (1, 512, 512, 4, 1, 256),
        (1, 128, 2048, 32, 8, 128),
        (1, 1, 1024, 4, 1, 256),
        (16, 1, 1024, 32, 8, 128),
    ):
        pages = s * context // 16
        kcache, vcache = torch.randn(pages, 16, kv, d), torch.randn(pages, 16, kv, d)
        table = torch.arange(pages, dtype=torch.int32).view(s, -1)
        starts, held = (
            torch.arange(s + 1, dtype=torch.int32) * t,
            torch.full((s,), context, dtype=torch.int32),
        )
        q, out = torch.randn(s * t, h, d), torch.empty(s * t, h, d)
        rows = q.view(s, t, h, d).transpose(1, 2).contiguous()
        keys, values = (c.view(s, context, kv, d).transpose(1, 2).contiguous() for c in (kcache, vcache))
        mask = torch.ones(t, context, dtype=torch.bool).tril(context - t)
        runs: list[Run] = [
            partial(kernels.paged_attention, q, kcache, vcache, starts, held, table, out, scale=d**-0.5),
            partial(F.scaled_dot_product_attention, rows, keys, values, attn_mask=mask, enable_gqa=True),
        ]
        flops = 4 * s * h * d * t * (context - (t - 1) / 2)
        mine, peer = medians(runs, repeat, clock, max(1, int(1e8 / flops)))
        name = f"{s} x {t} queries, {context} keys, {h}/{kv} heads of {d}"
        print(f"{name:<44}{mine * 1e6:9.0f}{flops / mine / 1e9:9.0f}{peer / mine:9.1f}")


def small(kernels: Kernels, repeat: int, clock: Clock) -> None:
    """One token's row: bound by the call, and by waking the pool."""
    x, w, y = torch.randn(1, 640), torch.randn(640), torch.empty(1, 640)
    logits, best = torch.randn(1, 262144), torch.empty(1, dtype=torch.int64)
    gate, up = torch.randn(1, 2048), torch.randn(1, 2048)
    pointers = (x.data_ptr(), 640, w.data_ptr(), y.data_ptr(), 640, 1, 640, 1e-6)
    cases: dict[str, tuple[Run, Run]] = {
        "raw call of an empty copy": (lambda: kernels.raw.copy(0, 0, 0, 0, 0, 0), lambda: None),
        "rms_norm of 640, raw": (
            lambda: kernels.raw.rms_norm(*pointers),
            lambda: F.rms_norm(x, (640,), w, 1e-6),
        ),
        "rms_norm of 640, tensors": (
            lambda: kernels.rms_norm(x, w, y, 1e-6),
            lambda: F.rms_norm(x, (640,), w, 1e-6),
        ),
        "silu_mul of 2048": (lambda: kernels.act_mul("silu", gate, up, gate), lambda: F.silu(gate) * up),
        "argmax of 262144": (lambda: kernels.argmax(logits, best), lambda: logits.argmax(-1)),
    }
    print(f"{'one row':<30}{'us':>9}{'x torch':>9}")
    for name, (mine, peer) in cases.items():
        times = medians([mine, peer], repeat, clock, 500)
        print(f"{name:<30}{times[0] * 1e6:9.2f}{times[1] / times[0]:9.1f}")


def main() -> None:
    """The tables asked for."""
    parts = {part.__name__: part for part in (decode, product, attention, small)}
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--repeat", type=int, default=11)
    options.add_argument("--only", choices=parts)
    options.add_argument("--cpu-time", action="store_true")
    asked = options.parse_args()
    threads, clock = (1, thread_time) if asked.cpu_time else (asked.threads, perf_counter)
    kernels = load_kernels()
    if kernels is None:
        raise SystemExit("no C++ compiler on this machine: `irloom doctor` says what is missing")
    torch.set_num_threads(threads)
    kernels.set_threads(threads)
    for name, part in parts.items():
        if asked.only in (None, name):
            part(kernels, asked.repeat, clock)
            print()


if __name__ == "__main__":
    main()
