"""Triton kernels, one file an operation; imported where a tensor on CUDA asks for one, and by their tests."""
