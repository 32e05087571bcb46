"""A network of the user's own: what keeps the contract runs as any network, and what breaks it is one line."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.segmenter import load
from segkit.models.checkpoint import Checkpoint
from segkit.models.finetune import load_matching
from segkit.models.inference_form import inference_form
from segkit.models.own import around, build_module, own_network
from segkit.models.segmentation import NETWORKS, class_path
from segkit.models.weight_files import write_model_file
from segkit.ops.normalize import IMAGENET


class Net(nn.Module):
    """Stride 4, and sides that are multiples of 8."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[-1] % 8 or x.shape[-2] % 8:
            raise RuntimeError("sides must be multiples of 8")
        logits = self.classify(self.down(x))
        return {"out": logits, "aux": logits + 1}


def wrap(kind: type[nn.Module], **arguments: Any) -> Any:
    return around(build_module(kind, arguments))


def test_what_it_needs_is_found_by_running_it() -> None:
    network = wrap(Net, num_classes=5)
    assert (network.multiple, network.output_stride, network.num_classes) == (8, 4, 5)
    image = torch.randn(2, 3, 50, 39)
    trained = network.train()(image)
    assert {name: tuple(value.shape) for name, value in trained.items()} == dict.fromkeys(
        ("out", "aux"), (2, 5, 13, 10)
    )
    evaluated = network.eval()(image)
    assert evaluated.keys() == {"out"}
    whole = network.encoder(torch.nn.functional.pad(image, (0, 1, 0, 6)))["out"]
    assert torch.equal(evaluated["out"], whole[..., :13, :10])
    folded = inference_form(network)(image)["out"]
    torch.testing.assert_close(folded, evaluated["out"], rtol=1e-4, atol=1e-5)


def test_the_last_pixels_are_seen_where_a_network_rounds_down() -> None:
    class RoundsDown(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 2, 4, stride=4)

    network = wrap(RoundsDown)
    assert network.multiple == 4
    assert network(torch.zeros(1, 3, 33, 50))["out"].shape == (1, 2, 9, 13)


@pytest.mark.slow
def test_a_network_of_another_library_gives_its_own_logits() -> None:
    network = own_network("segmentation_models_pytorch.Unet")(encoder_name="resnet18", encoder_weights=None, classes=3)
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
    theirs.load_state_dict(network.encoder.state_dict())  # type: ignore[operator, union-attr]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(network.eval()(image)["out"], theirs(image))


def test_a_file_never_names_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = wrap(Net, num_classes=3)
    path = tmp_path / "own.safetensors"
    parts = {"network": network.config, "normalization": IMAGENET.to_dict()}
    write_model_file(path, Checkpoint(parts, network.state_dict()))
    monkeypatch.delitem(NETWORKS, class_path(type(network)))
    with pytest.raises(InputError, match=r"own\.safetensors: network class '.*Net' is not one of .*--network") as error:
        load(path)
    assert "damaged" not in str(error.value)
    labels = load(path, network=Net, precision="exact").predict(torch.zeros(30, 41, 3, dtype=torch.uint8).numpy())
    assert labels.shape == (30, 41)
    with pytest.raises(InputError, match=r"its network is .*Net, but .*Returns was given"):
        load(path, network=returning(lambda x: x))


def returning(made: Any) -> type[nn.Module]:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Any:
            return made(x)

    return Returns


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda x: (x, x), "returns a tuple"),
        (lambda x: {"logits": x}, "returns a dict"),
        (lambda x: x.mean(1), r"'out' is \(2, 256, 512\)"),
        (lambda x: x[:1], "it makes logits"),
        (lambda x: x[..., ::2], "one whole stride"),
        (lambda x: x.repeat(1, len(x), 1, 1), "other classes or strides for another size or batch"),
        (lambda x: x @ x, "does not run on a float image"),
        (lambda x: {"out": x, "aux": 1}, "'aux' is int"),
        (lambda x: x.long(), "floating point"),
    ],
)
def test_what_breaks_the_contract_is_one_line(made: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        wrap(returning(made))
    assert "\n" not in str(error.value)


def test_what_is_no_network_is_one_line() -> None:
    with pytest.raises(InputError, match=r"no class of a torch\.nn\.Module"):
        own_network("pathlib.Path")
    with pytest.raises(InputError, match=r"did you mean segmentation_models_pytorch\.Unet\?|did you mean Unet\?"):
        own_network("segmentation_models_pytorch.Unett")
    with pytest.raises(InputError, match="there is no module"):
        own_network("absent_module.Net")
    with pytest.raises(InputError, match=r"Net\(\): TypeError: .*num_classes"):
        wrap(Net)
    with pytest.raises(InputError, match="its arguments are unknown"):
        around(Net(3))
    with pytest.raises(InputError, match="give plain data"):
        wrap(Net, num_classes=3, width=torch.tensor(8))


def test_training_begins_with_the_weights_of_another_run(tmp_path: Path) -> None:
    trained, fresh = wrap(Net, num_classes=3), wrap(Net, num_classes=3)
    names = ["road", "car", "sky"]
    space = {"class_names": names, "palette": [[i, i, i] for i in range(3)], "table": [0, 1, 2] + [-1] * 253}
    path = tmp_path / "own.safetensors"
    parts = {"network": trained.config, "normalization": IMAGENET.to_dict(), "label_space": space}
    write_model_file(path, Checkpoint(parts, trained.state_dict()))
    report = load_matching(fresh, path, names)
    assert report.taken == report.total and report.kept == tuple(names)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in fresh.state_dict().items())
