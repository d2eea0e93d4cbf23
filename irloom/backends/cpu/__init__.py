"""The CPU target: own kernels, packed weights, a readable program."""
