"""Pairs of label maps by name, their counts, and what is said of files that cannot be scored."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from segkit.errors import InputError
from segkit.evaluation.confusion import confusion_counts
from segkit.io import read_label, write_png
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table, numbered_space
from segkit.predictions.pairs import LabelPair, Problem, find_pairs
from segkit.predictions.scoring import (
    ImageError,
    count_pair,
    read_pair,
    score_pairs,
    suspicion,
    train_id_space,
)

RNG = np.random.default_rng(0)


def label_map(path: Path, values: list[int] | range, size: tuple[int, int] = (13, 17)) -> Path:
    write_png(path, RNG.choice(np.array(values, np.uint8), size))
    return path


def make_pair(folder: Path, true: list[int] | range, predicted: list[int] | range) -> LabelPair:
    return LabelPair(
        "a", label_map(folder / "true" / "a.png", true), label_map(folder / "predicted" / "a.png", predicted)
    )


@pytest.mark.parametrize(
    ("truth", "predictions", "true", "predicted"),
    [
        (CITYSCAPES, CITYSCAPES, range(34), range(34)),  # both in label ids, predicted void too
        (CITYSCAPES, train_id_space(CITYSCAPES), range(34), [*range(19), 255]),
        (ADE20K, train_id_space(ADE20K), range(151), range(150)),
        (ADE20K, ADE20K, range(151), range(1, 151)),
        (numbered_space(255), numbered_space(255), range(256), range(256)),
        (numbered_space(1), numbered_space(1), [255], [0]),
        (numbered_space(3), numbered_space(3), [0, 2, 255], [255]),
    ],
)
def test_counts_are_those_of_the_mapped_label_maps(tmp_path: Path, truth, predictions, true, predicted) -> None:
    pair = make_pair(tmp_path, true, predicted)
    mask, labels = read_pair(pair, truth, predictions)
    assert np.array_equal(mask, np.array(truth.table)[read_label(pair.truth)])
    assert np.array_equal(labels, np.array(predictions.table)[read_label(pair.prediction)])
    wanted = confusion_counts(torch.from_numpy(mask.copy()), torch.from_numpy(labels.copy()), truth.num_classes)
    counts = count_pair(pair, truth, predictions)
    assert counts.dtype == torch.int64 and torch.equal(counts, wanted) and int(counts.sum()) == 13 * 17


def test_a_table_that_merges_classes(tmp_path: Path) -> None:
    table = tuple({5: 0, 6: 0, 7: 1, 8: 255}.get(raw, -1) for raw in range(256))
    space = LabelSpace(("a", "b"), distinct_palette(2), table)
    pair = make_pair(tmp_path, [5, 6, 7, 8], [5, 7, 8])
    mask, labels = read_pair(pair, space, space)
    wanted = confusion_counts(torch.from_numpy(mask.copy()), torch.from_numpy(labels.copy()), 2)
    assert torch.equal(count_pair(pair, space, space), wanted) and set(np.unique(mask)) == {0, 1, 255}


def test_any_number_of_threads_gives_the_same_in_order(tmp_path: Path) -> None:
    for i in range(40):
        label_map(tmp_path / "true" / f"{i:02}.png", [0, 1, 2, 255], (5 + i, 9))
        label_map(tmp_path / "predicted" / f"{i:02}.png", [0, 1, 2], (5 + i, 9))
    pairs = find_pairs(tmp_path / "predicted", tmp_path / "true").pairs
    one, many = (list(score_pairs(pairs, numbered_space(3), workers=workers)) for workers in (1, 5))
    assert [name for name, _ in one] == [name for name, _ in many] == [f"{i:02}" for i in range(40)]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, many, strict=True))


def test_only_as_many_images_as_needed_are_read_ahead(tmp_path: Path) -> None:
    pair, taken = make_pair(tmp_path, [0], [0]), []

    def endless():
        while True:
            taken.append(0)
            yield pair

    results = score_pairs(endless(), numbered_space(1), workers=2)
    for _ in range(5):
        next(results)
    assert len(taken) <= 5 + 4 * 2
    results.close()


@pytest.mark.parametrize(
    ("write", "kind", "words"),
    [
        (lambda p: label_map(p, [0], (13, 18)), "wrong size", ("is 18x13 but the truth", "is 17x13", "resized")),
        (lambda p: cv2.imwrite(str(p), np.zeros((13, 17), np.uint16)), "unreadable file", ("16", "8 bits")),
        (
            lambda p: Image.new("RGB", (17, 13)).save(p),
            "unreadable file",
            ("RGB", "replace each colour", "--data.masks colors"),
        ),
        (lambda p: Image.new("RGBA", (17, 13)).save(p), "unreadable file", ("RGBA", "replace each colour")),
        (lambda p: Image.new("L", (17, 13)).save(p, "JPEG"), "unreadable file", ("JPEG, which changes",)),
        (lambda p: p.write_bytes(b""), "unreadable file", ("empty file",)),
        (lambda p: p.write_bytes(b"no image"), "unreadable file", ("no image format",)),
        (lambda p: p.write_bytes(p.read_bytes()[:60]), "unreadable file", ("truncated label map",)),
        (lambda p: p.write_bytes(p.read_bytes()[:50] + b"?" + p.read_bytes()[51:]), "unreadable file", ("damaged",)),
        (lambda p: label_map(p, [7, 26]), "unknown id in the prediction", ("value 26", "--prediction_ids raw reads")),
        (lambda p: label_map(p, [99]), "unknown id in the prediction", ("value 99 is not declared: 221 pixels",)),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, write, kind: str, words: tuple[str, ...]) -> None:
    good, bad = make_pair(tmp_path, range(34), range(19)), make_pair(tmp_path / "bad", range(34), range(19))
    write(bad.prediction)
    with pytest.raises(ImageError) as caught:
        list(score_pairs([bad], CITYSCAPES))
    message = str(caught.value)
    assert caught.value.problem == Problem("a", kind, message)
    assert "\n" not in message and str(bad.prediction) in message and all(word in message for word in words), message
    told: list[Problem] = []
    rest = list(score_pairs([bad, good, bad], CITYSCAPES, report=told.append))
    assert len(rest) == 1 and told == [caught.value.problem] * 2


def test_an_unknown_id_in_the_truth(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, [*range(19), 255], range(19))
    with pytest.raises(ImageError, match=r"value 255 is not declared: .* --truth_ids train reads") as caught:
        count_pair(pair, CITYSCAPES, train_id_space(CITYSCAPES))
    assert caught.value.problem.kind == "unknown id in the truth"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        label_map(root / name, [0], (2, 2))
    return root


def test_names_are_relative_paths_without_suffix(tmp_path: Path) -> None:
    truth = touch(tmp_path / "truth", "a.png", "town/b.x.png", "c.png", "d.png")
    found = touch(tmp_path / "found", "a.png", "town/b.x.png", ".c.png", "e.png", "d.png", "d.tif")
    (found / "notes.txt").write_text("no label map")
    pairing = find_pairs(found, truth)
    assert [(p.name, p.truth, p.prediction) for p in pairing.pairs] == [
        (name, truth / f"{name}.png", found / f"{name}.png") for name in ("a", "d", "town/b.x")
    ]
    assert [(p.name, p.kind) for p in pairing.problems] == [("c", "missing prediction")] and pairing.unused == ["e"]


def test_endings_are_no_part_of_the_name(tmp_path: Path) -> None:
    truth = touch(tmp_path / "truth", "a.png")
    found = touch(tmp_path / "found", "a_labels.png", "a_color.png")
    pairing = find_pairs(found, truth, prediction_ending="_labels.png")
    assert [(p.name, p.prediction.name) for p in pairing.pairs] == [("a", "a_labels.png")] and not pairing.unused
    with pytest.raises(InputError, match=r"no prediction has a truth's name \(truth: a, prediction: a_color\)"):
        find_pairs(found, truth)


def test_cityscapes_names_are_city_sequence_and_frame(tmp_path: Path) -> None:
    stems = [f"{city}/{city}_00000{i}_000019" for city in ("bonn", "bad-honnef") for i in range(2)]
    truth = tmp_path / "truth"
    for stem in stems:
        touch(truth, *(f"{stem}_gtFine_{kind}.png" for kind in ("labelIds", "labelTrainIds", "color", "instanceIds")))
    found = touch(
        tmp_path / "found", *(f"{stem.split('/')[1]}{end}.png" for stem in stems for end in ("_leftImg8bit",))
    )
    for ids, kind in (("raw", "labelIds"), ("train", "labelTrainIds")):
        pairs = find_pairs(found, truth, truth_ids=ids).pairs
        assert [p.name for p in pairs] == sorted(stem.split("/")[1] for stem in stems)
        assert all(p.truth.name.endswith(f"_gtFine_{kind}.png") for p in pairs)
    touch(found, "bonn_000001_000019_pred_labelIds.png")
    (problem,) = find_pairs(found, truth).problems
    assert problem.kind == "two predictions" and "2 predictions for the image bonn_000001_000019" in problem.message


def test_folders_without_label_maps(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "full", "a.png")
    with pytest.raises(InputError, match="empty: no label map here"):
        find_pairs(tmp_path / "empty", tmp_path / "full")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_pairs(tmp_path / "full", tmp_path / "nowhere")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_every_label_png_is_read_as_its_stored_values(tmp_path: Path) -> None:
    """Grey and palette, any chunk that a viewer would act on, interlaced or not, odd sizes: the values as stored."""
    values, path = RNG.integers(0, 256, (37, 53), dtype=np.uint8), tmp_path / "a.png"
    extras = {b"gAMA": struct.pack(">I", 45455), b"sBIT": b"\4", b"bKGD": b"\0\x09", b"sRGB": b"\0", b"zTXt": b"k\0\0"}
    exif = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"  # turned by 90 degrees
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    for colour in (0, 3):
        extra = b"".join(chunk(kind, body) for kind, body in (extras | {b"eXIf": exif}).items())
        if colour == 3:
            extra += chunk(b"PLTE", bytes(range(255, -1, -1)) * 3) + chunk(b"tRNS", b"\0" * 9)
        header = struct.pack(">IIBBBBB", 53, 37, 8, colour, 0, 0, 0)
        halves = zlib.compress(rows)[:500], zlib.compress(rows)[500:]
        data = chunk(b"IHDR", header) + extra + b"".join(chunk(b"IDAT", half) for half in halves) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + b"bytes after the end")
        assert np.array_equal(read_label(path), values)
    Image.fromarray(values > 99).save(path)  # 1 bit
    assert np.array_equal(read_label(path), values > 99)


@pytest.mark.slow
def test_no_damaged_png_is_read_as_other_values(tmp_path: Path) -> None:
    path, values = tmp_path / "a.png", np.kron(RNG.integers(0, 19, (9, 9)), np.ones((8, 8))).astype(np.uint8)
    write_png(path, values)
    data, refused = path.read_bytes(), 0
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        try:
            assert np.array_equal(read_label(path), values)
        except InputError:
            refused += 1
    assert refused > 0.9 * len(data)


def test_another_numbering_is_noticed() -> None:
    right = torch.diag(torch.full((5,), 100))
    shifted = torch.zeros(7, 6, dtype=torch.int64)
    shifted[:5, :5] = right
    assert suspicion(shifted) is None
    shifted = torch.zeros(7, 6, dtype=torch.int64)
    shifted[:4, 1:5], shifted[5, 0] = right[:4, :4], 50
    assert "one class too high" in str(suspicion(shifted))
    shifted = torch.zeros(7, 6, dtype=torch.int64)
    shifted[1:5, :4] = right[:4, :4]
    assert "one class too low" in str(suspicion(shifted))
    constant = torch.zeros(7, 6, dtype=torch.int64)
    constant[:5, 1] = torch.tensor([900, 1, 1, 1, 1])  # a network that knows one class: bad, but no other numbering
    assert suspicion(constant) is None
    shifted[1:5, 5] = 300
    shifted[:5, :5] = right
    assert "predicted as no class" in str(suspicion(shifted))
    assert train_id_space(numbered_space(4)).table == identity_table(4)


def test_linked_and_foreign_folders(tmp_path: Path) -> None:
    """As layouts and `segkit infer` walk: links followed once, what file servers write left out."""
    for kind in ("truth", "predictions"):
        label_map(tmp_path / f"elsewhere/{kind}/1.png", [0, 1])
        label_map(tmp_path / kind / "@eaDir" / "1.png", [0])
        label_map(tmp_path / kind / ".ipynb_checkpoints" / "1-checkpoint.png", [0])
        (tmp_path / kind / "town").symlink_to(tmp_path / "elsewhere" / kind)
        (tmp_path / kind / "loop").symlink_to(tmp_path)
    found = find_pairs(tmp_path / "predictions", tmp_path / "truth")
    assert [pair.name for pair in found.pairs] == ["town/1"] and not found.problems and not found.unused
