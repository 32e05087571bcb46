"""smp's decoders over segkit's encoders: smp's own logits, images of every size, and a file that brings them back."""

from pathlib import Path
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from scenes import scenes

from segkit.cli import main
from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint
from segkit.models.decoders import Decoder, EncoderDecoder
from segkit.models.inference_form import inference_form
from segkit.models.segmentation import build_network
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint
from segkit.ops.upsample import upsample

DECODERS = get_args(Decoder)
SMP = {name.lower(): kind for name, kind in vars(smp).items() if isinstance(kind, type)}
CONVOLUTIONAL = [name for name in DECODERS if name != "dpt"]
VIT = "test_vit"  # the smallest of timm's
QUICK = ("unet", "deeplabv3plus")
SMALLER = {"dpt": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 16, 24, 32]}}
PAIRS = [
    pytest.param(name, encoder, marks=() if name in QUICK and encoder == "resnest14_tiny" else pytest.mark.slow)
    for name in CONVOLUTIONAL
    for encoder in ("resnest14_tiny", "resnet10t")
]


@pytest.mark.parametrize(("decoder", "encoder"), [*PAIRS, pytest.param("dpt", VIT, marks=pytest.mark.slow)])
def test_every_decoder_trains_and_comes_back_from_a_file(decoder: Any, encoder: str, tmp_path: Path) -> None:
    network = EncoderDecoder(encoder, 5, decoder, aux=True, decoder_args=SMALLER.get(decoder))
    image = torch.randn(2, 3, 97, 65)
    outputs = network(image)
    sum(upsample(value, (97, 65), True).square().mean() for value in outputs.values()).backward()
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert all(network.get_parameter(name).grad is not None for name in trained)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)

    file = tmp_path / "model.safetensors"
    known = {"network": network.config, "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    write_model_file(file, Checkpoint(known, network.state_dict()))
    back = read_checkpoint(file)
    again = back.build_network()
    again.load_state_dict(back.state_dict)
    with torch.no_grad():
        expected = network.eval()(image)["out"]
        assert torch.equal(again.eval()(image)["out"], expected)
        folded = inference_form(network)(image)["out"]
    assert (folded - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("decoder", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in DECODERS])
def test_logits_are_those_of_smp(decoder: Any) -> None:
    options: dict[str, Any] = {"dynamic_img_size": True} if decoder == "dpt" else {}
    encoder = VIT if decoder == "dpt" else "resnet10t"
    smaller = SMALLER.get(decoder, {})
    theirs = SMP[decoder](f"tu-{encoder}", encoder_weights=None, classes=5, **options, **smaller).eval()
    ours = EncoderDecoder(encoder, 5, decoder, decoder_args=smaller).eval()
    ours.encoder.encoder.load_state_dict(theirs.encoder.state_dict())  # type: ignore[operator, union-attr]
    ours.head.decoder.load_state_dict(theirs.decoder.state_dict())  # type: ignore[operator, union-attr]
    ours.head.segmentation_head.load_state_dict(theirs.segmentation_head.state_dict())  # type: ignore[operator, union-attr]
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        expected, logits = theirs(image), ours(image)["out"]
    torch.testing.assert_close(upsample(logits, (128, 160), ours.align_corners), expected, rtol=1e-5, atol=1e-6)


def test_a_side_that_is_no_multiple_is_padded_at_its_end() -> None:
    network = EncoderDecoder("resnest14_tiny", 5, "unet").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = network(torch.nn.functional.pad(image[..., :50, :40], (0, 24, 0, 14)))["out"]
        assert torch.equal(network(image[..., :50, :40])["out"], whole[..., :50, :40])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decoder": "unett"}, "one of unet"),
        ({"decoder_args": {"decoder_chanels": [8]}}, "did you mean decoder_channels?"),
        ({"decoder_args": {"decoder_channels": [8, 8]}}, "correct decoder_args"),
        ({"decoder_args": {"decoder_channels": "wide"}}, "decoder_args.decoder_channels is 'wide'; needed is"),
        ({"output_stride": 8}, "leave it out for 32"),
        ({"decoder": "deeplabv3", "output_stride": 32}, "output stride 8 or 16"),
        ({"encoder": VIT}, "decoder: dpt takes it"),
        ({"encoder": VIT, "decoder": "linknet"}, "decoder: dpt takes it"),
        ({"encoder": VIT, "decoder": "manet"}, "decoder: dpt takes it"),
        ({"decoder": "dpt"}, "plain vision transformer"),
        ({"decoder": "dpt", "encoder": "resnet10t"}, "plain vision transformer"),
        ({"decoder": "pan", "encoder": "swin_tiny_patch4_window7_224"}, "cannot be dilated to output stride 16"),
        ({"encoder": "resnet10t", "dilation_convention": "mmseg"}, "has no effect"),
        ({"num_classes": 0}, "give 1 or more"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        EncoderDecoder(**{"encoder": "resnest14_tiny", "num_classes": 5, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder", ["convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "tf_efficientnet_lite0"]
)
def test_encoders_that_are_not_dilated(encoder: str) -> None:
    network = EncoderDecoder(encoder, 5, "upernet", decoder_args={"decoder_channels": 16}).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 50, 70))["out"].shape == (1, 5, 13, 18)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["linknet", "manet", "unet"])
def test_encoders_without_a_feature_of_stride_2(decoder: Any) -> None:
    theirs = SMP[decoder]("tu-convnext_atto", encoder_weights=None, classes=5).eval()
    ours = EncoderDecoder("convnext_atto", 5, decoder).eval()
    assert ours.encoder.channels[1] == 0  # type: ignore[index, union-attr]
    ours.encoder.encoder.load_state_dict(theirs.encoder.state_dict())  # type: ignore[operator, union-attr]
    ours.head.decoder.load_state_dict(theirs.decoder.state_dict())  # type: ignore[operator, union-attr]
    ours.head.segmentation_head.load_state_dict(theirs.segmentation_head.state_dict())  # type: ignore[operator, union-attr]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(upsample(ours(image)["out"], (64, 96), True), theirs(image), rtol=1e-5, atol=1e-6)
        assert ours(image[..., :50, :70])["out"].shape == (1, 5, 50, 70)
    ours.train()(torch.randn(2, 3, 50, 70))["out"].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters() if p.requires_grad)


def test_a_network_is_rebuilt_from_its_config() -> None:
    network = EncoderDecoder("resnest14_tiny", 5, "pspnet")
    again = build_network(network.config)
    assert again.config == network.config and again.state_dict().keys() == network.state_dict().keys()
    assert not any(name.startswith(("encoder.layer3", "encoder.layer4")) for name in again.state_dict())


@pytest.mark.slow
def test_a_run_is_resumed_by_its_own_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which has `null` where smp's output stride is taken."""
    data = scenes(tmp_path / "data", num_train=8, num_val=2, num_test=2, batch_size=4, crop_size=64)
    network = ["--model.network", "EncoderDecoder", "--model.network.encoder", "resnest14_tiny"]
    run, trainer = ["--run_dir", str(tmp_path / "run")], ["--trainer.accelerator", "cpu", "--trainer.max_epochs"]
    assert main(["fit", *data, *network, *run, *trainer, "1"]) == 0
    assert main(["fit", "--ckpt_path", "last", *run, *trainer, "2", "--reschedule"]) == 0
    assert "epoch 1: 100%" in capsys.readouterr().err
