"""Numerical kernels of the packed forward, each with a plain torch reference."""
