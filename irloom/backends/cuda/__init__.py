"""The CUDA target: own Triton kernels and well-kept libraries, whole steps as CUDA graphs."""
