"""The figures, as far as they can be judged without eyes: what is in them, and that text has room."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.evaluation.plots import save_figure
from segkit.explain.attention import Reading
from segkit.explain.figures import Panel, channels_figure, classes_figure, panels_figure, shares_scale, short_names
from segkit.io import image_size
from segkit.metadata.label_space import numbered_space


def test_short_names_leave_out_what_is_common() -> None:
    assert short_names(["encoder.layer1.0.conv2", "encoder.layer4.12.conv2"]) == ["layer1.0", "layer4.12"]
    assert short_names(["encoder.encoder.model.blocks.0.se", "encoder.encoder.model.blocks.1.se"]) == ["0", "1"]
    assert short_names(["encoder.a.se", "encoder.a.sk"]) == ["se", "sk"]
    assert short_names(["encoder.se"]) == ["se"]


@pytest.mark.slow
@pytest.mark.parametrize("classes, blocks", [(3, 4), (150, 89)])
def test_every_class_and_block_has_room(classes: int, blocks: int) -> None:
    shares = {f"encoder.layer1.{i}.conv2": np.full((classes, 2), 0.5) for i in range(blocks)}
    shares["encoder.layer1.0.conv2"][1] = np.nan
    figure = classes_figure(shares, [f"class {k}, of a long name" for k in range(classes)], "title")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert len(axes.get_xticklabels()) == classes - 1 and len(axes.get_yticklabels()) == blocks
    inches = axes.get_window_extent().width / figure.dpi / (classes - 1)
    assert inches * 72 > 8  # points of a name that stands upright


def test_preferred_splits_of_more_than_two() -> None:
    figure = classes_figure({"a.0.c": np.array([[0.1, 0.2, 0.7], [0.4, 0.3, 0.3]])}, ["cat", "$dog$"], "title")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["2", "0"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.7 - 1 / 3, 0.4 - 1 / 3]])
    assert axes.get_xticklabels()[1].get_text() == r"\$dog\$"


def test_channels_are_sorted_around_no_preference() -> None:
    weights = torch.tensor([[[0.1, 0.9, 0.5, 0.5], [0.9, 0.1, 0.5, 0.5]]])
    figure = channels_figure({"a.0": Reading(weights, weights[..., None])}, "title")
    axes = figure.axes[0]
    values = np.asarray(axes.images[0].get_array())[0].reshape(2, -1)
    np.testing.assert_allclose(values[:, [0, -1]], [[0.4, -0.4]] * 2, atol=1e-6)
    assert [text.get_text() for text in axes.texts] == ["0.50 \u00b1 0.28"] * 2


def test_a_page_of_panels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, labels = np.zeros((30, 40, 3), np.uint8), np.arange(1200).reshape(30, 40) % 20
    heat = np.linspace(0, 0.9, 1200).reshape(30, 40)
    panel, scale = Panel("$ a \x1b $", image, heat), shares_scale([heat], 4)
    assert scale.low == 0 and scale.centre == 0.25 and scale.high == pytest.approx(0.9)
    figure = panels_figure([[panel, panel], [panel]], "title", scale, labels.astype(np.uint8), numbered_space(20))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 13 and names[-1] == "+ 8 more"
    with caplog.at_level(logging.WARNING):
        save_figure(figure, tmp_path / "page.png")
    assert image_size(tmp_path / "page.png")[0] > 900 and not caplog.records  # no formulas, no missing fonts
