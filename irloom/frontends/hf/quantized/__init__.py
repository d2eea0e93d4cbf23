"""Weights that a checkpoint stores quantized (FP8, FP4, packed integers) as the plain ones of its model."""

from irloom.frontends.hf.quantized.schemes import dequantized

__all__ = ["dequantized"]
