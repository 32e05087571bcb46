"""Intervals and comparisons against brute force, coverage on simulated data, and differences that are real or not."""

from itertools import product

import numpy as np
import pytest
import torch

from segkit.errors import InputError
from segkit.evaluation.comparison import holm, p_value, paired_comparison
from segkit.evaluation.confusion import ConfusionMatrix, confusion_counts
from segkit.evaluation.statistics import ImageAreas, bootstrap_miou, bootstrap_weights


def named(areas):
    return ImageAreas(np.asarray(areas, np.int64), tuple(f"image {i}" for i in range(len(areas))))


def model(truth, skill, seed, noise=0.1):
    """Areas of a model that finds about `skill` (K,) of each class; images differ in difficulty."""
    generator = np.random.default_rng(seed)
    found = np.clip(skill + noise * generator.standard_normal(truth.shape), 0, 1)
    inside = np.round(truth * found)
    outside = np.round(truth * np.clip(0.2 + noise * generator.standard_normal(truth.shape), 0, 1))
    return named(np.stack([inside, truth, np.where(truth > 0, inside + outside, 0)], axis=1))


def truth_areas(count, num_classes, seed=0):
    generator = np.random.default_rng(seed)
    present = generator.random((count, num_classes)) < 0.7
    return np.where(present, generator.integers(50, 5000, (count, num_classes)), 0)


def plain_miou(images):
    """segkit's rule in plain Python, for a list of (3, K)."""
    total, ious = np.sum(images, axis=0), []
    for i, t, p in total.T.tolist():
        if t + p - i:
            ious.append(i / (t + p - i))
    return sum(ious) / len(ious) if ious else float("nan")


def test_areas_of_images_sum_to_the_confusion_matrix():
    generator = torch.Generator().manual_seed(0)
    masks, labels = (torch.randint(0, 5, (6, 20, 30), generator=generator, dtype=torch.uint8) for _ in range(2))
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = 255
    labels[0, :3] = 255  # of no class: missed
    confusion = ConfusionMatrix(5)
    confusion.update(masks, labels)
    counts = [(str(i), confusion_counts(m, p, 5)) for i, (m, p) in enumerate(zip(masks, labels, strict=True))]
    areas = ImageAreas.from_counts(iter(counts))
    assert areas.areas.shape == (6, 3, 5) and areas.names == ("0", "1", "2", "3", "4", "5")
    result, scores = bootstrap_miou(areas, num_samples=10), confusion.scores()
    assert result.miou.value == pytest.approx(scores.miou, rel=1e-14)
    np.testing.assert_allclose([c.value for c in result.classes], scores.class_iou, rtol=1e-14)


def test_undeclared_ids_name_the_image():
    counts = confusion_counts(torch.tensor([0, 7], dtype=torch.uint8), torch.tensor([0, 0], dtype=torch.uint8), 2)
    with pytest.raises(InputError, match="strange: 1 pixels"):
        ImageAreas.from_counts([("strange", counts)])


def test_areas_are_kept_in_a_file(tmp_path):
    areas = model(truth_areas(5, 3), 0.7, seed=0)
    areas.save(tmp_path / "new" / "areas.npz")
    again = ImageAreas.load(tmp_path / "new" / "areas.npz")
    assert again.names == areas.names and np.array_equal(again.areas, areas.areas)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["areas.npz"]
    with pytest.raises(InputError, match="no such file"):
        ImageAreas.load(tmp_path / "none.npz")
    np.savez(tmp_path / "pickled.npz", areas=np.array([{}], object), names=np.array(["a"]))
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    for name in ("pickled.npz", "text.npz", "array.npz.npy"):
        with pytest.raises(InputError, match="not a file of image areas"):
            ImageAreas.load(tmp_path / name)


def test_bootstrap_is_the_plain_one():
    areas = model(truth_areas(7, 4), 0.7, seed=1)
    result = bootstrap_miou(areas, num_samples=50, seed=3, level=0.9)
    (weights,) = bootstrap_weights(7, 50, seed=3)
    assert weights.shape == (50, 7) and (weights.sum(axis=1) == 7).all()
    drawn = [[areas.areas[i] for i in range(7) for _ in range(int(row[i]))] for row in weights]
    np.testing.assert_allclose(
        [result.miou.low, result.miou.high], np.quantile([plain_miou(p) for p in drawn], [0.05, 0.95]), rtol=1e-12
    )
    of_class = [plain_miou(np.array(p)[:, :, 1:2]) for p in drawn]
    np.testing.assert_allclose(
        [result.classes[1].low, result.classes[1].high], np.nanquantile(of_class, [0.05, 0.95]), rtol=1e-12
    )
    assert result.to_dict() == bootstrap_miou(areas, num_samples=50, seed=3, level=0.9).to_dict()
    assert result.to_dict() != bootstrap_miou(areas, num_samples=50, seed=4, level=0.9).to_dict()
    backwards = ImageAreas(areas.areas[::-1], areas.names[::-1])
    assert result == bootstrap_miou(backwards, num_samples=50, seed=3, level=0.9)


def test_chunks_do_not_change_the_interval(monkeypatch):
    areas = model(truth_areas(9, 3), 0.7, seed=1)
    whole = bootstrap_miou(areas, num_samples=40)
    monkeypatch.setattr("segkit.evaluation.statistics._CHUNK", 9 * 7)
    assert bootstrap_miou(areas, num_samples=40) == whole


def test_interval_covers_the_true_miou_as_often_as_it_says():
    skill = np.array([0.9, 0.7, 0.4])
    population = model(truth_areas(20_000, 3, seed=5), skill, seed=6).areas
    true = plain_miou(population)
    generator = np.random.default_rng(0)
    inside = 0
    for i in range(200):
        sample = named(population[generator.integers(0, len(population), 80)])
        result = bootstrap_miou(sample, num_samples=200, seed=i).miou
        inside += result.low <= true <= result.high
    assert 0.90 <= inside / 200 <= 0.99  # 0.95 +- 3 standard errors of 200 trials, less what a bootstrap of 80 lacks


def test_absent_classes_have_no_interval():
    areas = model(truth_areas(6, 3), 0.7, seed=1).areas
    areas[:, :, 2] = 0
    result = bootstrap_miou(named(areas), num_samples=20)
    assert np.isnan(result.classes[2].value) and np.isnan(result.classes[2].low)
    assert result.miou.value == pytest.approx(plain_miou(areas))
    assert result.to_dict()["classes"][2] == {"value": None, "low": None, "high": None}


def test_permutation_test_is_all_swaps_by_hand():
    truth = truth_areas(6, 3)
    a, b = model(truth, 0.6, seed=1), model(truth, np.array([0.8, 0.65, 0.6]), seed=2)
    observed = plain_miou(b.areas) - plain_miou(a.areas)
    drawn = []
    for swapped in product([False, True], repeat=6):
        first = [y if s else x for x, y, s in zip(a.areas, b.areas, swapped, strict=True)]
        second = [x if s else y for x, y, s in zip(a.areas, b.areas, swapped, strict=True)]
        drawn.append(plain_miou(second) - plain_miou(first))
    result = paired_comparison(a, b)
    assert result.num_permutations == 64
    assert result.miou.p == np.mean(np.abs(drawn) >= abs(observed) - 1e-12)
    assert result.miou.difference.value == pytest.approx(observed, rel=1e-12)
    sampled = paired_comparison(a, b, num_permutations=63)
    assert sampled.num_permutations == 63 and sampled.miou.p == pytest.approx(result.miou.p, abs=0.15)


def test_holm_by_hand():
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06, 0.9 * 1
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.9, 0.01, 0.03])), [0.06, np.nan, 0.9, 0.04, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1] and np.isnan(holm(np.full(2, np.nan))).all()


def test_a_real_difference_is_found_and_said():
    truth = truth_areas(100, 4)
    truth[:, 3] = 0
    a, b = model(truth, 0.6, seed=1), model(truth, np.array([0.6, 0.72, 0.6, 0.6]), seed=2)
    order = np.random.default_rng(0).permutation(100)
    b = ImageAreas(b.areas[order], tuple(b.names[i] for i in order))  # matched by name
    result = paired_comparison(a, b)
    assert [c.verdict for c in result.classes] == ["=", "B", "=", ""]
    assert result.miou.verdict == "B" and result.miou.difference.low > 0 and result.miou.p < 0.01
    d = result.miou.difference
    numbers = f"95 % CI {100 * d.low:.2f} to {100 * d.high:.2f}, {p_value(result.miou.p)}, 100 images"
    assert result.sentence("old", "new") == f"new is better than old by {100 * d.value:+.2f} mIoU ({numbers})"
    back = paired_comparison(b, a)
    assert back.sentence("new", "old") == result.sentence("old", "new") and back.miou.verdict == "A"
    plain = result.to_dict()
    assert plain["classes"][1]["verdict"] == "B" and plain["classes"][3]["difference"]["value"] is None


def test_a_null_difference_is_called_real_as_rarely_as_it_says():
    found = 0
    for seed in range(60):
        truth = truth_areas(30, 3, seed=seed)
        a, b = model(truth, 0.6, seed=1000 + seed), model(truth, 0.6, seed=2000 + seed)
        result = paired_comparison(a, b, num_samples=20, num_permutations=400)
        found += result.miou.verdict != "="
    assert found <= 8  # 3 expected; more than 8 once in 400 times
    assert result.sentence().startswith("A and B are not distinguishable: ")


def test_a_model_is_not_better_than_itself():
    a = model(truth_areas(20, 3), 0.6, seed=1)
    result = paired_comparison(a, a)
    assert result.miou.p == 1 and result.miou.difference.value == 0 and {c.verdict for c in result.classes} == {"="}


def test_what_has_no_score_is_not_compared_in_numbers():
    nothing = named(np.zeros((5, 3, 3), np.int64))
    assert paired_comparison(nothing, nothing).sentence("old", "new").startswith("old and new cannot be compared: ")


def test_what_cannot_be_compared_is_refused():
    truth = truth_areas(5, 3)
    a, b = model(truth, 0.6, seed=1), model(truth, 0.6, seed=2)
    with pytest.raises(InputError, match="in only one of A"):
        paired_comparison(a, ImageAreas(b.areas[1:], b.names[1:]))
    with pytest.raises(InputError, match="classes"):
        paired_comparison(a, named(b.areas[:, :, :2]))
    other = b.areas.copy()
    other[3, 1, 0] += 1
    with pytest.raises(InputError, match="image 3 has two truths"):
        paired_comparison(a, named(other))
    for options, words in (({"num_samples": 0}, "samples"), ({"level": 95}, "between 0 and 1")):
        with pytest.raises(InputError, match=words):
            paired_comparison(a, b, **options)
    with pytest.raises(InputError, match="2 or more"):
        bootstrap_miou(named(a.areas[:1]))
    with pytest.raises(InputError, match="different names"):
        ImageAreas(a.areas, ("x",) * 5)
    with pytest.raises(InputError, match="int64"):
        ImageAreas.from_counts([])


@pytest.mark.parametrize(
    ("p", "text"), [(0.0004, "p < 0.001"), (0.004, "p = 0.004"), (0.523, "p = 0.52"), (1, "p = 1.00")]
)
def test_p_values_in_words(p, text):
    assert p_value(p) == text
