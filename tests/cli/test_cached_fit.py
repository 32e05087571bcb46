"""`segkit fit` from the cache sees the same bytes as from the files."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning import Callback

from segkit.cli import main
from segkit.files import write_text
from segkit.io import write_png

pytestmark = pytest.mark.slow

FAST = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]
TINY = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--model.network.output_stride", "16"]


class BatchDigests(Callback):
    """Appends the SHA-256 of each batch that a step gets to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._add("train", batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._add("val", batch)

    def _add(self, stage, batch) -> None:
        data = batch["image"].contiguous().numpy().tobytes() + batch["mask"].numpy().tobytes()
        with self.path.open("a") as file:
            file.write(f"{stage} {hashlib.sha256(data).hexdigest()} {' '.join(batch['name'])}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for i in range(count):
            size = (40 + i, 56 - i)
            write_png(tmp_path / f"data/images/{split}/{split}{i}.png", rng.integers(0, 256, (*size, 3), np.uint8))
            labels = np.where(rng.random(size) < 0.1, 255, rng.integers(0, 3, size)).astype(np.uint8)
            write_png(tmp_path / f"data/labels/{split}/{split}{i}.png", labels)
    write_text(tmp_path / "data/classes.txt", "a\nb\nc\n")
    return tmp_path


def digests(folder: Path, name: str, *options: str) -> list[str]:
    path = folder / f"{name}.txt"
    write_text(
        folder / f"{name}.yaml",
        f"""\
trainer:
  max_epochs: 2
  callbacks: [{{class_path: {BatchDigests.__module__}.BatchDigests, init_args: {{path: {path}}}}}]
data:
  class_path: FolderDataModule
  init_args:
    {{root: {folder / "data"}, batch_size: 2, base_size: 48, crop_size: 32,
      augmentations: [{{class_path: albumentations.GaussianBlur}}]}}
""",
    )
    run = ["--run_dir", str(folder / f"run-{name}"), "--data.num_workers", "0"]
    assert main(["fit", "--config", str(folder / f"{name}.yaml"), *TINY, *FAST, *run, *options]) == 0
    return path.read_text().splitlines()


def test_batches_are_equal_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(BatchDigests, "__module__", Path(__file__).stem)
    plain = digests(folder, "plain")
    assert sum(line.startswith("train") for line in plain) == 6 and sum(line.startswith("val") for line in plain) >= 6
    assert len(set(plain)) > 6  # epochs differ
    cache = ["--data.cache_dir", str(folder / "cache")]
    assert digests(folder, "cached", *cache) == plain
    assert len(list((folder / "cache").glob("folder-*/index.json"))) == 2
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.u8")}
    # From a cache that is there, the files are not even read.
    for path in (folder / "data").rglob("*.png"):
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests(folder, "again", *cache, "--data.num_workers", "2") == plain
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.u8")}
    assert digests(folder, "other", *cache, "--data.seed", "1") != plain
