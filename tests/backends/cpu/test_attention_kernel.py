"""Paged attention: any mix of prefill and decode, against float64, its bits whatever the chunking."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from irloom.backends.cpu.native import Kernels

NAN = float("nan")


@dataclass
class Case:
    """Sequences of ``lengths`` tokens whose last ``new`` are queried; pages shuffled, the rest NaN."""

    lengths: list[int]
    new: list[int]
    heads: int = 4
    kv: int = 1
    dim: int = 64
    dv: int = 0
    page: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    chunk: int | None = None
    slopes: Tensor | None = None
    elem: torch.dtype = torch.float32
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dv = self.dv or self.dim
        g = torch.Generator().manual_seed(len(self.lengths) * 1000 + self.dim)
        self.queries = [torch.randn(n, self.heads, self.dim, generator=g) for n in self.lengths]
        self.keys = [torch.randn(n, self.kv, self.dim, generator=g).to(self.elem) for n in self.lengths]
        self.values = [torch.randn(n, self.kv, self.dv, generator=g).to(self.elem) for n in self.lengths]

    def run(self, kernels: Kernels, which: list[int], new: list[int], lengths: list[int]) -> list[Tensor]:
        """Attention of the last ``new`` tokens of each of ``which``, cut to ``lengths``, in one call."""
        needed = [-(-n // self.page) for n in lengths]
        order = torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(sum(lengths))).int()
        table = torch.full((len(which), max(needed)), -1, dtype=torch.int32)
        kcache = torch.full((len(order), self.page, self.kv, self.dim), NAN).to(self.elem)
        vcache = torch.full((len(order), self.page, self.kv, self.dv), NAN).to(self.elem)
        at = 0
        for row, count in enumerate(needed):
            table[row, :count] = order[at : at + count]
            at += count
        context = torch.tensor(lengths, dtype=torch.int32)
        held = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
        slots = torch.empty(sum(lengths), dtype=torch.int64)
        kernels.slots(held, context, table, self.page, slots)
        k = torch.cat([self.keys[w][:n] for w, n in zip(which, lengths, strict=True)]).float()
        v = torch.cat([self.values[w][:n] for w, n in zip(which, lengths, strict=True)]).float()
        kernels.kv_append(k, v, kcache, vcache, slots)
        self._drop_pages_past_the_window(table, new, lengths)
        starts = torch.tensor([0, *torch.tensor(new).cumsum(0)], dtype=torch.int32)
        q = torch.cat([self.queries[w][n - m : n] for w, n, m in zip(which, lengths, new, strict=True)])
        out = torch.full((sum(new), self.heads, self.dv), NAN)
        kernels.paged_attention(q, kcache, vcache, starts, context, table, out, scale=self.dim**-0.5,
                                window=self.window, softcap=self.softcap, sinks=self.sinks, chunk=self.chunk,
                                slopes=self.slopes)  # fmt: skip
        return list(out.split(new))

    def _drop_pages_past_the_window(self, table: Tensor, new: list[int], lengths: list[int]) -> None:
        for row, (n, m) in enumerate(zip(lengths, new, strict=True)):
            first = n - m
            gone = first // self.chunk * self.chunk if self.chunk else 0
            if self.window:
                gone = max(gone, first + 1 - self.window)
            table[row, : gone // self.page] = -1

    def reference(self, which: int) -> Tensor:
        q, k, v = self.queries[which].double(), self.keys[which].double(), self.values[which].double()
        group = self.heads // self.kv
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        s = torch.einsum("qhd,khd->hqk", q, k) * self.dim**-0.5
        if self.softcap:
            s = torch.tanh(s / self.softcap) * self.softcap
        i, j = torch.arange(len(q))[:, None], torch.arange(len(q))[None]
        hidden = (j > i) | (j <= i - self.window) if self.window else j > i
        if self.chunk:
            hidden = hidden | (j // self.chunk < i // self.chunk)
        if self.slopes is not None:
            s = s + self.slopes.double()[:, None, None] * (j - i)
        s = s.masked_fill(hidden, float("-inf"))
        if self.sinks is not None:
            s = torch.cat([s, self.sinks.double()[:, None, None].expand(-1, len(q), 1)], -1)
        return torch.einsum("hqk,khd->qhd", s.softmax(-1)[..., : len(q)], v)


CASES = {
    "one decode": Case([700], [1]),
    "one prefill": Case([70], [70]),
    "mixed": Case([1, 300, 64, 65, 530], [1, 3, 64, 1, 200], heads=6, kv=2),
    "window": Case([400, 90, 1000], [1, 90, 130], window=100, dim=128),
    "window of one": Case([30], [30], window=1),
    "softcap": Case([130, 8], [20, 8], softcap=5.0, heads=2, kv=2),
    "sinks": Case([90, 300], [90, 1], heads=8, kv=2, sinks=torch.linspace(-3, 3, 8)),
    "chunk": Case([400, 90, 33, 64], [1, 90, 2, 1], chunk=32, dim=128),
    "chunk that is no multiple of a block": Case([300], [170], chunk=75),
    "chunk and window": Case([200], [130], chunk=64, window=20),
    "slopes": Case([700, 90], [1, 90], heads=8, kv=2, slopes=2.0 ** -torch.arange(1, 9)),
    "slopes past a softcap": Case([130], [20], softcap=5.0, slopes=torch.tensor([0.5, 0.25, 0.1, -0.1])),
    "odd head dims": Case([70, 40], [70, 1], dim=40, dv=72, kv=2, page=5),
    "wide group": Case([150], [4], heads=71, dim=64),
    "bf16 cache": Case([200, 90], [1, 90], elem=torch.bfloat16, dim=256),
    "f16 cache": Case([200, 90], [1, 90], elem=torch.float16, page=1),
    "wide heads": Case([300], [40], heads=4, dim=256, page=32),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_float64_and_keeps_its_bits(kernels: Kernels, name: str) -> None:
    """Alone, in the batch, query by query and on one thread: the same bits, near the reference."""
    case = CASES[name]
    which = list(range(len(case.lengths)))
    together = case.run(kernels, which, case.new, case.lengths)
    for w, got in zip(which, together, strict=True):
        n, m = case.lengths[w], case.new[w]
        torch.testing.assert_close(got.double(), case.reference(w)[n - m :], rtol=1e-5, atol=3e-6)
        (alone,) = case.run(kernels, [w], [m], [n])
        assert torch.equal(alone, got)
        for i in sorted({0, m // 3, m - 1}):
            (single,) = case.run(kernels, [w], [1], [n - m + i + 1])
            assert torch.equal(single[0], got[i]), f"query {i} of {m}"
        if m > 2:
            (part,) = case.run(kernels, [w], [m - m // 2], [n])
            assert torch.equal(part, got[m // 2 :])
    kernels.set_threads(1)
    serial = case.run(kernels, which, case.new, case.lengths)
    kernels.set_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(serial, together, strict=True))
