"""Kernels of the CUDA target: each module holds Triton kernels and the functions that launch them.

A launcher is a plain function on torch tensors: results first, then operands, then keyword attributes. It
writes every entry of its results and allocates nothing but from the ``Workspace`` it is given, so that it can
be captured in a CUDA graph.
"""
