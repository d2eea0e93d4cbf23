"""Keys and values of new tokens, written into a linear cache in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, OPERATORS, allow, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class KVCacheUpdate(Layer):
    """``cache[b, :, past[b] + n] = new[b, :, n]``, in the cache's own memory.

    ``cache`` is [B, heads, L, head dim], an input of the network with an L that is known when it is built;
    the result must leave the network, as an alias of it. ``new`` is [B, heads, N, head dim], or, where
    ``starts`` [B + 1] says at which row a slot begins, the packed [T, heads, head dim]. ``past`` is [B].
    """

    source = f"{OPERATORS}/KVCacheUpdate.html"
    renews = "cache"

    cache: Tensor
    new: Tensor
    past: Tensor
    starts: Tensor | None = None

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "cache", self.cache, FLOATS)
        same_elem(self, self.cache, self.new)
        slots, heads, length, features = (*self.cache.dims, 0, 0, 0, 0)[:4]
        if len(self.cache.dims) != 4 or not isinstance(length, int):
            raise self.refuse(f"{self.cache} is not [B, heads, L, head dim] with a static L")
        new = self.new.dims
        allow(self, "past", self.past, ("i32",))
        if self.past.dims != (slots,):
            raise self.refuse(f"{self.past} is not [{slots}]")
        if self.starts is not None:
            allow(self, "starts", self.starts, ("i32",))
            if self.starts.dims != (slots + 1,):
                raise self.refuse(f"{self.starts} is not [{slots + 1}]")
            fits = new == (new[0], heads, features)
        else:
            fits = len(new) == 4 and new == (slots, heads, new[2], features)
            fits = fits and not (isinstance(new[2], int) and new[2] > length)
        if not fits:
            raise self.refuse(f"{self.new} does not fit into {self.cache}")
        return ((self.cache.elem, self.cache.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        cache, new, past = value(self.cache), value(self.new), value(self.past).long()
        if self.starts is None:
            slot = torch.arange(cache.shape[0], device=cache.device)[:, None]
            at, rows = past[:, None] + torch.arange(new.shape[2], device=cache.device), new.transpose(1, 2)
        else:
            starts = value(self.starts).long()
            slot = torch.repeat_interleave(starts.diff(), output_size=new.shape[0])
            at, rows = past[slot] + torch.arange(new.shape[0], device=cache.device) - starts[slot], new
        if at.numel() and not (at.is_cuda and torch.cuda.is_current_stream_capturing()):
            assert int(at.max()) < cache.shape[2], f"{self}: written behind the cache's end"
        cache[slot, :, at] = rows
        return (cache,)

    def emit(self, to: Emitter) -> Sequence[Any]:
        given = to[self.cache], to[self.new], to[self.past]
        layer = to.network.add_kv_cache_update(*given, to.trt.KVCacheMode.LINEAR)
        if self.starts is not None:
            layer.update_form = to.trt.AttentionIOForm.PACKED_NHD
            layer.update_lengths = to[self.starts]
        return [layer.get_output(0)]
