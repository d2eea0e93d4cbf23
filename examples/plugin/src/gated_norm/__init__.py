"""The gated RMSNorm of Mamba 2 and its kin as one op, with a C++ kernel, and the pass that finds it."""
