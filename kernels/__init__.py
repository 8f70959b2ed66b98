"""Numerical kernels of the packed forward, in Triton and as torch references."""
