"""XLNet that looks back only: scores by content, and by sines and cosines of the distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.blocks.refused import Refused
from irloom.frontends.hf.interfaces import attention


@replaces("XLNetModel")
def model(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As it is, where its attention is what ``relative_attention`` computes."""
    if self.attn_type != "uni" or self.same_length:
        raise Refused(
            f"{type(self).__name__} attends to later tokens",
            hint='attn_type="uni" and same_length=False in its config make it a decoder',
        )
    if self.clamp_len > 0 or self.bi_data:
        raise Refused(f"{type(self).__name__} clamps distances, or counts them both ways")
    return type(self).forward(self, *args, **kwargs)


@replaces("XLNetRelativeAttention")
def relative_attention(self: Any, h: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Rows [T, B, H]. A score by distance is a product, too: ``cos(a - b) = cos a cos b + sin a sin b``.

    So what the library computes for each pair of tokens are features of the query, and of the key.
    """
    x = h.transpose(0, 1)
    q, k, v = ((x @ w.flatten(1)).unflatten(-1, w.shape[1:]) for w in (self.q, self.k, self.v))
    sin, cos = _rotation(self.r.shape[0], h)
    waves = self.r.flatten(1).T.unflatten(0, self.r.shape[1:])
    by_distance = (q + self.r_r_bias).transpose(1, 2) @ waves[None]
    of_sin, of_cos = by_distance.chunk(2, dim=-1)
    turned = (of_sin * sin + of_cos * cos, of_cos * sin - of_sin * cos)
    query = torch.cat([(q + self.r_w_bias).transpose(1, 2), *turned], dim=-1)
    far = torch.cat([cos, sin], dim=-1).expand(1, self.n_head, -1, -1)
    key = torch.cat([k.transpose(1, 2), far], dim=-1)
    found = attention(self, query, key, v.transpose(1, 2), None, scaling=self.scale)[0]
    out = found.flatten(2) @ self.o.flatten(1).T
    return self.layer_norm(out.transpose(0, 1) + h), None


def _rotation(features: int, h: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines [T, features / 2] of each token's position."""
    frequency = 1 / torch.pow(10000, torch.arange(0, features, 2, device=h.device).float() / features)
    angle = torch.arange(h.shape[0], device=h.device).float()[:, None] * frequency
    return angle.sin(), angle.cos()
