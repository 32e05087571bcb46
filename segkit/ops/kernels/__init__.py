"""Triton kernels, one file per operation; imported when a CUDA tensor needs one, and by their tests."""
