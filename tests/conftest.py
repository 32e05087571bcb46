"""Every test process computes with one thread: several share the cores, and more threads than cores are slow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are checked on the CPU; Triton asks when it decorates them

torch.set_num_threads(1)
