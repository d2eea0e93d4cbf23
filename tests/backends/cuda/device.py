"""Where the tests of kernels run."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""The GPU; the CPU, in Triton's interpreter, where there is none."""
