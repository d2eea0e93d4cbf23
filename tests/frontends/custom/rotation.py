"""Rotary embedding, each half of a head against the other."""

import torch


def frequencies(features):
    half = features // 2
    return 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)


def rotated(x, positions, frequencies):
    angles = positions[:, None, :, None].float() * frequencies
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)
