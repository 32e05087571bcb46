"""A look at an image, and Grad-CAM against Captum's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from PIL import Image
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.explain import look as looking
from segkit.explain.look import grad_cams, look
from segkit.inference.segmenter import load
from segkit.metadata.label_space import numbered_space
from segkit.models.decoders import EncoderDecoder
from segkit.models.segmentation import FCN
from segkit.ops.upsample import upsample
from segkit.ops.upsample_argmax import upsample_argmax


def network_of(build: Any, *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return build(*args, **kwargs).eval().requires_grad_(False)


def labelled(network: Any, x: Tensor) -> Any:
    return upsample_argmax(network(x)["out"], x.shape[-2:], network.align_corners)[0].numpy()


class ClassScores(nn.Module):
    """Captum's view of a network: (B, K) scores, the mean logits over the pixels that are predicted as each class."""

    def __init__(self, network: Any, labels: np.ndarray) -> None:
        super().__init__()
        self.network, self.labels = network, torch.from_numpy(labels)

    def forward(self, x: Tensor) -> Tensor:
        logits = upsample(self.network(x)["out"], x.shape[-2:], self.network.align_corners)
        return torch.stack([logits[:, k, self.labels == k].mean(1) for k in range(logits.shape[1])], 1)


@pytest.mark.parametrize("stages", [(4,), (2, 3, 4)])
def test_grad_cam_is_captums(stages: tuple[int, ...]) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    network, x = network_of(FCN, "resnest14_tiny", num_classes=3), torch.randn(1, 3, 41, 57)
    labels = labelled(network, x)
    classes = [k for k in range(3) if (labels == k).any()]
    assert len(classes) > 1
    found = grad_cams(network, x, labels, classes, stages)
    assert found.shape == (len(stages), len(classes), 41, 57)
    scores = ClassScores(network, labels)
    for i, stage in enumerate(stages):
        layer = attr.LayerGradCam(scores, getattr(network.encoder, f"layer{stage}"))
        for j, k in enumerate(classes):
            cam = layer.attribute(x.clone().requires_grad_(), target=k, relu_attributions=True)
            torch.testing.assert_close(found[i, j], upsample(cam, (41, 57), True)[0, 0])


def test_a_linear_network_by_hand() -> None:
    """Class 0 reads channel 0: its gradient is the same everywhere, and the map is that channel's."""

    class Linear(nn.Module):
        align_corners, num_classes = False, 2

        def __init__(self) -> None:
            super().__init__()
            self.encoder = Two()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.encoder(x)[-1] * torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)}

    class Two(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x, x, x, x, x * 1]

    x = torch.rand(1, 2, 4, 6)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    cams = grad_cams(Linear(), x, labels, [0, 1], [4])
    torch.testing.assert_close(cams[0, 0], 2 / 24 * x[0, 0])  # the mean of 2/12 over one half of the cells
    assert (cams[0, 1] == 0).all()


def test_stages_that_a_network_lacks_are_named() -> None:
    network, x = network_of(EncoderDecoder, "resnest14_tiny", 3, decoder="pspnet"), torch.randn(1, 3, 64, 64)
    labels = labelled(network, x)
    with pytest.raises(InputError, match=r"--stages 4: the encoder has \d stages"):
        grad_cams(network, x, labels, [int(labels[0, 0])], [4])
    network = network_of(FCN, "convnext_atto", 3, output_stride=32)  # whose features are copies
    labels = labelled(network, x)
    with pytest.raises(InputError, match="--stages 1: the logits do not depend"):
        grad_cams(network, x, labels, [int(labels[0, 0])], [1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "unet.ckpt"
    return write_checkpoint(path, EncoderDecoder("resnest14_tiny", 4, decoder="unet"), numbered_space(4))


def test_the_labels_are_those_without_a_look(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)).save(tmp_path / "a.png")
    segmenter = load(checkpoint, "cpu", precision="exact")
    seen = look(segmenter, tmp_path / "a.png")
    assert (seen.labels == segmenter.predict(tmp_path / "a.png")).all()
    assert seen.image.shape == (45, 70, 3) and len(seen.attention) == 4
    assert seen.covered == (64, 96)
    monkeypatch.setattr(looking, "MOST_PIXELS", 1000)
    small = look(segmenter, tmp_path / "a.png")
    assert small.reduced == 2 and small.image.shape == (23, 35, 3) and small.labels.shape == (23, 35)
