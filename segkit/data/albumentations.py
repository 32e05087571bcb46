"""albumentations, imported without its network access. Import `A` from here and nowhere else."""

import os

# Without it albumentations 2.0.8 asks PyPI for a newer version on every import, in every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

__all__ = ["A"]
