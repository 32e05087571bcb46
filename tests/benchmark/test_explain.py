"""`explain` names what was planted first: faults of the model, of its input, and of how it was scored."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.benchmark.explain import search
from segkit.benchmark.explain.judge import Judge
from segkit.benchmark.explain.search import Explanation, explain, report
from segkit.benchmark.explain.setting import Setting
from segkit.benchmark.models.segkit_file import SegkitModel
from segkit.inference import protocols
from segkit.inference.segmenter import Segmenter
from segkit.metadata.class_match import ClassMatch
from segkit.ops.normalize import IMAGENET, Normalization, normalize

COLOURS = torch.tensor([[40, 60, 200], [70, 190, 90], [190, 70, 60], [150, 150, 20], [30, 30, 40]], dtype=torch.uint8)
SIDE, IMAGES = 65, 6
FAULTS = ("normalization", "channels", "label table", "align_corners", "masks")


class NearestColour(nn.Module):
    """Logits at stride 4, highest for the class whose colour is nearest to every fourth pixel."""

    output_stride, num_classes, config = 4, len(COLOURS), {"init_args": {}}

    def __init__(self, align_corners: bool, reverse: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        seen = COLOURS.flip(1) if reverse else COLOURS  # as of who reads BGR and normalises by the means of RGB
        colours = normalize(seen.T[None, :, :, None], IMAGENET)[0, :, :, 0].T  # (K, 3)
        self.head = nn.Conv2d(3, len(COLOURS), 1, stride=4).requires_grad_(False)
        self.head.weight.copy_(2 * colours[:, :, None, None])
        self.head.bias.copy_(-(colours**2).sum(dim=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(x)}


def images() -> list[tuple[str, np.ndarray, Tensor]]:
    """Drawn images: discs of the classes' colours, with noise."""
    rng = np.random.default_rng(0)
    made = []
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for i in range(IMAGES):
        mask = np.full((SIDE, SIDE), rng.integers(len(COLOURS)))
        for _ in range(30):
            y, x, radius = rng.integers(SIDE), rng.integers(SIDE), rng.integers(5, 14)
            mask[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = rng.integers(len(COLOURS))
        image = COLOURS.numpy()[mask] + rng.normal(0, 25, (SIDE, SIDE, 3))
        made.append((f"{i}", image.clip(0, 255).astype(np.uint8), torch.from_numpy(mask.astype(np.uint8))))
    return made


def judge(planted: Sequence[str]) -> tuple[Judge, Setting]:
    half = Normalization((0.5,) * 3, (0.5,) * 3)
    network = NearestColour("align_corners" not in planted, "channels" in planted)
    normalization = half if "normalization" in planted else IMAGENET
    segmenter = Segmenter(network, None, normalization, protocols.get("whole"), torch.device("cpu"))
    data = images()
    if "label table" in planted:  # the data begin with a class that the model lacks; the last one is ignored
        data = [(n, i, torch.where(mask + 1 < len(COLOURS), mask + 1, 255).to(torch.uint8)) for n, i, mask in data]
    match = ClassMatch(tuple(range(len(COLOURS))))
    return Judge(SegkitModel("model", segmenter), match, data, len(COLOURS)), Setting(segmenter.protocol)


RIGHT = {
    "normalization": {"normalization": IMAGENET},
    "channels": {"reverse": True},
    "label table": {"shift": 1},
    "align_corners": {"protocol": replace(protocols.get("whole"), align_corners=True)},
    "masks": {"mask_scale": 0.5},
}


def claim(planted: Sequence[str]) -> float:
    """What the same model is worth where all that was planted is taken into account."""
    others, setting = judge(planted)
    for fault in planted:
        setting = replace(setting, **RIGHT[fault])
    return others.miou(others.counts(setting), "segkit")


def explained(*planted: str) -> Explanation:
    return explain(*judge(planted), claimed=claim(planted))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_one_planted_fault_is_named_first(fault: str) -> None:
    found = explained(fault)
    assert found.steps[0].what.startswith(fault)
    assert found.reached == pytest.approx(found.claimed, abs=5e-4)
    assert found.steps[0].difference.low <= found.steps[0].difference.value <= found.steps[0].difference.high


@pytest.mark.slow
@pytest.mark.parametrize("pair", combinations(FAULTS, 2), ids="+".join)
def test_two_planted_faults_are_named_before_all_else(pair: tuple[str, str]) -> None:
    found = explained(*pair)
    words = ", and ".join(step.what for step in found.steps).split(", and ")
    assert {word.split(":")[0] for word in words[:2]} == set(pair), [s.what for s in found.steps]
    assert found.reached == pytest.approx(found.claimed, abs=5e-4)


def test_where_nothing_is_wrong_nothing_is_named() -> None:
    assert explained().steps == ()


@pytest.mark.slow
def test_without_a_claim_what_raises_the_score_is_named() -> None:
    assert explain(*judge(["channels"])).steps[0].what == "channels: BGR"


@pytest.mark.slow
def test_a_claim_out_of_reach_leaves_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_STEPS", 1)
    found = explain(*judge([]), claimed=1.0)
    assert "not explained" in report(found) and found.reached < 1
