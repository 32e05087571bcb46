"""Checkpoints as `segkit fit` writes them, of networks that were not trained."""

from pathlib import Path

import torch

from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN, SegmentationModel

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]  # not ImageNet's: the checkpoint's must be used


def write_checkpoint(path: Path, network: SegmentationModel, space: LabelSpace | None) -> Path:
    """Write what inference needs of a checkpoint; return its path."""
    hyper_parameters = {
        "network": network.config,
        "label_space": space and space.to_dict(),
        "normalization": {"mean": MEAN, "std": STD},
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"hyper_parameters": hyper_parameters, "state_dict": weights}, path)
    return path


def write_tiny(folder: Path) -> Path:
    """Write a checkpoint of a tiny network with random weights and three classes; return its path."""
    torch.manual_seed(0)
    space = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))
    return write_checkpoint(folder / "tiny.ckpt", FCN("resnest14_tiny", 3), space)


def write_module(path: Path, seed: int = 0, num_classes: int = 3) -> Path:
    """Write what Lightning's commands need of a tiny module with random weights; return its path."""
    from segkit.training.module import SegmentationModule

    torch.manual_seed(seed)
    module = SegmentationModule(FCN("resnest14_tiny", num_classes))
    data = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**data, "pytorch-lightning_version": "2.6.4"}, path)
    return path
