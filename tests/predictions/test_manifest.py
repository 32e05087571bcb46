"""`predictions.json`: what differs is named, and a file of something else is no manifest."""

from dataclasses import replace
from pathlib import Path

import pytest

from segkit.errors import InputError
from segkit.metadata.label_space import numbered_space
from segkit.predictions.manifest import NAME, Manifest, images_identity, read_manifest


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        weights={"file": "best.ckpt", "sha256": "0123456789"},
        protocol={"name": "whole", "scales": [1.0], "flip": False},
        precision="32-true",
        dataset={"name": "FolderDataModule", "split": "val"},
        images={"count": 2, "sha256": "abc"},
        label_space=numbered_space(3).to_dict(),
        complete=False,
        run={"command": "segkit predict", "date": "today"},
    )


def test_written_and_read_it_is_the_same(manifest: Manifest, tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    manifest.write(tmp_path)
    again = read_manifest(tmp_path)
    assert again == manifest and again.difference(manifest) is None and again.space == numbered_space(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"weights": {"file": "last.ckpt", "sha256": "9876543210"}},
            "weights: best.ckpt (01234567), not last.ckpt (9876",
        ),
        ({"weights": {"file": None, "sha256": "9876543210"}}, "not random ones (98765432)"),
        ({"protocol": {"name": "ms-flip"}}, "protocol: whole, not ms-flip"),
        ({"protocol": {"name": "whole", "scales": (1.0,), "flip": True}}, "protocol.flip: False, not True"),
        ({"precision": "bf16-mixed"}, "precision: 32-true, not bf16-mixed"),
        ({"dataset": {"name": "FolderDataModule", "split": "test"}}, "dataset.split: val, not test"),
        ({"images": {"count": 3, "sha256": "abc"}}, "images.count: 2, not 3"),
        ({"label_space": numbered_space(4).to_dict()}, "label_space.class_names: ['class 0'"),
        ({"complete": True, "run": {}}, None),
        ({"weights": {"file": "renamed.ckpt", "sha256": "0123456789"}}, None),
        ({"protocol": {"name": "whole", "scales": (1.0,), "flip": False}}, None),
    ],
)
def test_the_first_difference_that_makes_other_labels_is_named(
    manifest: Manifest, change: dict, said: str | None
) -> None:
    found = manifest.difference(replace(manifest, **change))
    assert found is None if said is None else found is not None and said in found


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2}'])
def test_another_file_of_that_name(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InputError, match=r"predictions\.json: (not what|written by a newer)") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["weights", "protocol", "dataset", "images", "label_space", "run"])
@pytest.mark.parametrize("value", [{}, [1], "text", None])
def test_a_part_of_another_form(manifest: Manifest, part: str, value: object, tmp_path: Path) -> None:
    replace(manifest, **{part: value}).write(tmp_path)
    if value == {} and part not in ("weights", "label_space"):  # what is not known is not needed
        assert read_manifest(tmp_path) == replace(manifest, **{part: {}})
        return
    with pytest.raises(InputError, match=r"predictions\.json: not what"):
        read_manifest(tmp_path)


def test_images_are_told_by_names_and_sizes() -> None:
    images = {"a": 1, "b": 2}
    identity = images_identity(images)
    assert identity["count"] == 2 and identity == images_identity(dict(reversed(images.items())))
    assert identity != images_identity({"a": 1, "c": 2})
    assert identity != images_identity({"a": 1, "b": 3})
