"""No command but `fit` with `encoder_weights: imagenet` touches the network: every way out is watched and shut."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scenes import scenes

from segkit.cli import main
from segkit.models.encoders import build_encoder
from segkit.models.segmentation import DeepLabV3

TRAINER = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


class Shut:
    """Raises at every attempt, and remembers it, because libraries swallow the exception."""

    def __init__(self) -> None:
        self.attempts: list[str] = []

    def guard(self, name: str, allowed: Callable[..., object] | None = None) -> Callable[..., object]:
        def attempt(*args: object, **kwargs: object) -> object:
            # Processes of one machine talk through AF_UNIX sockets; these lead nowhere else.
            if allowed is not None and isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX:
                return allowed(*args, **kwargs)
            self.attempts.append(f"{name}{args[-1:]}")
            raise OSError(f"{name}: the network is shut in this test")

        return attempt


@pytest.fixture(scope="module")
def shut() -> Iterator[Shut]:
    shut = Shut()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, shut.guard(name, getattr(socket.socket, name)))
        for name in ("create_connection", "getaddrinfo", "gethostbyname"):
            patch.setattr(socket, name, shut.guard(name))
        yield shut


@pytest.fixture
def watched(shut: Shut) -> Iterator[Shut]:
    """Fails the test that tried to get out, whatever became of the attempt."""
    shut.attempts.clear()
    yield shut
    assert shut.attempts == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a tiny drawn data set."""
    sizes = dict(batch_size=2, num_train=2, num_val=1, num_test=1, height=64, width=64, crop_size=32, base_size=64)
    return scenes(tmp_path_factory.mktemp("data") / "scenes", **sizes)


@pytest.fixture(scope="module")
def run(shut: Shut, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `segkit fit`."""
    run = tmp_path_factory.mktemp("runs") / "fit"
    fit = ["fit", *data, "--model.network", "FCN", "--model.network.encoder", "resnest14_tiny"]
    shut.attempts.clear()
    assert main([*fit, *TRAINER, "--trainer.max_epochs", "1", "--run_dir", str(run)]) == 0
    assert shut.attempts == []
    return run


def test_the_watch_sees_what_is_tried_and_swallowed(shut: Shut) -> None:
    import urllib.request

    shut.attempts.clear()
    with pytest.raises(OSError, match="shut"):
        urllib.request.urlopen("http://198.51.100.1:9/", timeout=1)
    with pytest.raises(OSError, match="shut"), socket.socket() as plain:
        plain.connect(("198.51.100.1", 9))
    assert len(shut.attempts) == 2
    shut.attempts.clear()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_lightning_commands(watched: Shut, run: Path, data: list[str], tmp_path: Path, command: str) -> None:
    options = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--run_dir", str(tmp_path / "run")]
    output = ["--output", str(tmp_path / "labels")] if command == "predict" else []
    assert main([command, *data, *TRAINER, *options, *output]) == 0


@pytest.mark.slow
def test_the_other_commands(watched: Shut, run: Path, data: list[str], tmp_path: Path) -> None:
    checkpoint, model = str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "model.safetensors")
    images = str(Path(data[3]) / "leftImg8bit" / "test")
    assert main(["export", checkpoint, "-o", model]) == 0
    assert main(["weights", "inspect", model]) == 0
    assert main(["weights", "inspect", checkpoint]) == 0
    assert main(["infer", images, "--checkpoint", model, "--output", str(tmp_path / "infer")]) == 0
    benchmark = ["benchmark", model, *data, "--output", str(tmp_path / "table"), "--device", "cpu"]
    assert main(benchmark) == 0
    labels = str(Path(data[3]) / "gtFine" / "test")
    score = ["benchmark", "score", labels, labels, "--labels", "cityscapes", "--prediction_ids", "raw"]
    assert main([*score, "--output", str(tmp_path / "score.json")]) == 0
    main(["submission", "check", "cityscapes", labels])  # whatever it finds wrong, it finds here


def test_networks_are_built_without_their_weights(watched: Shut) -> None:
    DeepLabV3("resnet18", 3)
    build_encoder("resnest14")


@pytest.mark.slow
def test_importing_everything_with_albumentations_version_check_left_on() -> None:
    """albumentations asks for a newer version of itself on import, and keeps silent if it gets no answer."""
    code = """
        import importlib, pkgutil, socket

        attempts = []
        def attempt(*args, **kwargs):
            attempts.append(args)
            raise OSError("shut")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = attempt

        import segkit
        names = [m.name for m in pkgutil.walk_packages(segkit.__path__, "segkit.") if not m.name.endswith("__main__")]
        for name in names:
            importlib.import_module(name)
        import albumentations
        print(len(names), attempts)
    """
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    count, attempts = done.stdout.split(maxsplit=1)
    assert int(count) > 40 and attempts.strip() == "[]"
