"""`segkit benchmark` on a SegFormer of transformers with random weights: the scores are those of the live library."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scored import plain_miou, rows_of

from segkit.files import write_text

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

pytestmark = pytest.mark.slow

Run = Callable[..., int]

NAMES = ("void", "boat", "sky", "tree", "road")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `save_pretrained` writes."""
    folder = tmp_path_factory.mktemp("hf") / "segformer"
    torch.manual_seed(0)
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(
        **sizes, decoder_hidden_size=16, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}
    )
    network = transformers.SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(network.decode_head.classifier.weight, std=20.0)  # so that it predicts several classes
    network.save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


def live(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Labels by the library alone, in the data's numbers."""
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    processor = transformers.SegformerImageProcessor.from_pretrained(folder)
    ids = np.array([255, 3, 2, 1, 0])

    def label(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs = network(**processor(image, return_tensors="pt"))
        (labels,) = processor.post_process_semantic_segmentation(outputs, [image.shape[:2]])
        return ids[labels.numpy()]

    return label


def test_a_folder_is_scored_as_the_library_does(
    run_benchmark: Run, benchmark_folder: Path, folder: Path, tmp_path: Path, capsys
) -> None:
    assert run_benchmark(str(folder), str(benchmark_folder / "a.ckpt")) == 0
    row, _ = rows_of(tmp_path / "table")
    assert row["mIoU"] == pytest.approx(plain_miou(benchmark_folder, live(folder)), abs=1e-4)  # ties of two classes
    assert row["mIoU"] > 0.05 and row["protocol"] == "own" and row["GFLOPs"] > 0 and row["M params"] > 0
    assert row["preprocessing"]["mean"] == [0.485, 0.456, 0.406] and row["preprocessing"]["range"] == [0, 1]
    assert row["preprocessing"]["size"] == "resize to height 64 x width 96"
    assert set(row["tried"]) == {"as it is", "BGR", "values 0..255 before mean and std"}
    said = capsys.readouterr().err
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, channels RGB, range 0..1, size resize to height 64" in said
    assert "matched by name: 4 of 5 classes; not in the data: void" in said
    assert run_benchmark(str(folder)) == 0
    assert "already in" in capsys.readouterr().err


def test_a_missing_rescaling_is_reported(run_benchmark: Run, folder: Path, tmp_path: Path, capsys) -> None:
    for path in folder.iterdir():
        write_text(tmp_path / "wrong" / path.name, "") if path.suffix == ".md" else _copy(path, tmp_path / "wrong")
    path = tmp_path / "wrong" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_rescale": False}))
    assert run_benchmark(str(tmp_path / "wrong"), "--limit", "1") == 0
    (row,) = rows_of(tmp_path / "table")
    assert "looks like 0..255 where 0..1 is expected" in row["warning"] and row["preprocessing"]["range"] == [0, 255]
    assert row["warning"] in capsys.readouterr().err


def _copy(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())


def test_what_is_wrong_with_a_model_is_one_line(
    run_benchmark: Run, folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, change: Callable[[Path], object]) -> str:
        for path in folder.iterdir():
            _copy(path, tmp_path / name)
        change(tmp_path / name)
        assert run_benchmark(str(tmp_path / name)) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    weights = "model.safetensors"
    assert "weights.bin" not in refused("none", lambda made: (made / weights).rename(made / "pytorch_model.bin"))
    assert "no weights in safetensors" in refused("pickle", lambda made: (made / weights).rename(made / "model.bin"))
    code = {
        "auto_map": {"AutoModelForSemanticSegmentation": "code.Net", "AutoConfig": "code.Config"},
        "model_type": "x",
    }

    def with_code(made: Path) -> None:
        write_text(made / "code.py", "raise SystemExit('code of the model was run')")
        (made / "config.json").write_text(json.dumps(json.loads((made / "config.json").read_text()) | code))

    assert "transformers cannot load it for semantic segmentation" in refused("code", with_code)
    assert "transformers cannot load it" in refused("cut", lambda made: (made / weights).write_bytes(b"12345678{"))
    network = transformers.SegformerForImageClassification(transformers.SegformerConfig.from_pretrained(folder))
    assert "it was saved for another task" in refused("other", lambda made: network.save_pretrained(made))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run_benchmark("nobody/no-such-model") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nobody/no-such-model: no such file, and not had from Hugging Face" in line
