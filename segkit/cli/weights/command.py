"""`segkit weights`: the arguments of its four actions. What needs PyTorch is imported when it runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.cli.parser import Parser, Switch, add_data_options, add_network_option, split_options, whole_number
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_new_file

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.models.toolkits.inspection import Choices

_DESCRIPTION = """\
Look into a weight file of any toolkit, write it as segkit's own, measure its batch norms' statistics again, or make its
network as sure as it is right.

Files (.pth, .pt, .ckpt, .safetensors; nothing in them is run):
  encoders   ResNeSt of the authors' release, PyTorch-Encoding, timm and mmsegmentation; ResNet of torchvision and timm;
             EfficientNet of EfficientNet-PyTorch; with --encoder any of timm
  networks   segkit; PyTorch-Encoding FCN and DeepLabV3; smp's twelve decoders over tu-* (with --encoder where it is
             no ResNeSt, ResNet or plain vision transformer), and those of stride 32 over its own resnet*;
             torchvision fcn_resnet* and deeplabv3_resnet*; mmsegmentation FCNHead, ASPPHead over ResNeSt, ResNet(V1c)

The toolkit, the network and the encoder are found by the names and shapes of the parameters. A parameter that is
missing, unexpected or of another shape is an error (exit code 2), unless --allow_unmatched lets it pass. Values
that are NaN, infinite or of no floating-point type are listed (exit code 1); what computes refuses them."""

_RECALIBRATE = """\
Precise batch norm: replace the running mean and variance of each batch norm by the average of those of N training
batches, at fixed weights. Training's own averages remember weights that have changed since, and are noisy where a GPU
had few images; all other weights stay as they are.

  segkit weights recalibrate runs/1/checkpoints/last.ckpt --data runs/1/config.yaml -o model.safetensors

FILE is a checkpoint of `segkit fit`, a model file, or another toolkit's whole network with what that toolkit implies
(to choose otherwise, `segkit weights convert` it first). The batches are crops of the training split, drawn and
augmented as `segkit fit` does. What is written is a model file (.safetensors) in every case, also of a .ckpt; its card
says what was done, and no longer has scores, which were those of the old statistics."""

_CALIBRATE = """\
Temperature scaling: find the number T for which the network's probabilities, p^(1/T) divided by their sum, fit the
validation split best (the least negative log likelihood of its pixels), and store it in a model file. For one view
that is softmax(logits / T). segkit's Segmenter, `infer`, `predict` and `test --calibration` then apply it, and so do
they to what `segkit export` makes of that file; no label changes, only how sure the network is of it.

  segkit weights calibrate runs/1/checkpoints/last.ckpt --data runs/1/config.yaml -o model.safetensors

The split is seen twice, whole, one image at a time; memory does not grow with it. Give the protocol with which the
confidence will be used: each has its own temperature. The error on other images is what `segkit test --calibration`
measures; a T that was fitted on the test split says nothing about it."""


def main(args: Sequence[str]) -> int:
    """Run `segkit weights`.

    Args:
        args: what follows `segkit weights` on the command line.

    Returns:
        0; 1 where `inspect` finds values that nothing can be computed with.

    Raises:
        InputError: the file cannot be read or recognised, or something in it does not match.
    """
    of_images = args[:1] in (["recalibrate"], ["calibrate"])
    own, of_data = split_options(args) if of_images else (list(args), [])
    options = _parser().parse_args(own)
    if options.action == "inspect":
        return _inspect(options)
    check_output(options.output, options.overwrite)
    if options.action == "convert":
        return _inspect(options)
    if options.action == "calibrate":
        from segkit.cli.weights import calibrate

        return calibrate.run(options, of_data)
    from segkit.cli.weights import recalibrate

    return recalibrate.run(options, of_data)


def check_output(output: Path, overwrite: bool) -> None:
    """Fail before seconds are spent on reading.

    Raises:
        InputError: The file is to be of another kind, exists, or cannot be written.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: the result is safetensors; give --output a name that ends in .safetensors")
    check_new_file(output, overwrite)


def _inspect(options: argparse.Namespace) -> int:
    """`inspect`, and `convert`, which reports the same before it writes."""
    from segkit.evaluation.results import versions
    from segkit.models.export.model_file import write_inspected
    from segkit.models.toolkits.report import report
    from segkit.models.weights import inspect

    choices = _choices(options)
    inspection = inspect(options.file, choices)
    say(report(options.file, inspection, options.all))
    inspection.keys.require_match(str(options.file), choices.allow_unmatched)
    if options.action == "convert" and options.to:
        from segkit.models.export.model_file import write_given_back

        line = write_given_back(options.output, inspection, options.file, options.to)
        say(f"\nwritten       {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)\nfor           {line}")
    elif options.action == "convert":
        write_inspected(options.output, inspection, options.file, versions(), choices.allow_unmatched)
        say(f"\nwritten       {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
    return 1 if inspection.unusable else 0


def _choices(options: argparse.Namespace) -> "Choices":
    from segkit.models.toolkits.inspection import Choices

    return Choices(
        encoder=options.encoder,
        output_stride=options.output_stride,
        dilation_convention=options.dilation_convention,
        allow_unmatched=tuple(options.allow_unmatched),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser("segkit weights", description=_DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{inspect,convert,recalibrate,calibrate}")
    look = actions.add_parser("inspect", help="say what a file holds, and what matches")
    convert = actions.add_parser("convert", help="write it as a safetensors file of segkit")
    for action in (look, convert):
        _add_choices(action)
    convert.add_argument(
        "--to",
        choices=("smp", "timm", "torchvision"),
        help="write it under that toolkit's names (timm: the encoder), and print the line of Python that builds the "
        "network which loads it strictly",
    )
    recalibrate = actions.add_parser(
        "recalibrate",
        help="average the batch norms' statistics over training batches (precise batch norm)",
        description=_RECALIBRATE,
    )
    _add_recalibration(recalibrate)
    calibrate = actions.add_parser(
        "calibrate", help="fit the temperature of its probabilities on validation images", description=_CALIBRATE
    )
    _add_calibration(calibrate)
    for action in (convert, recalibrate, calibrate):
        action.add_argument("-o", "--output", type=Path, required=True, help="the file to write, model.safetensors")
        action.add_argument("--overwrite", action=Switch, help="write over the output if it exists")
    return parser


def _add_choices(action: argparse.ArgumentParser) -> None:
    action.add_argument("file", type=Path, help="weight file of any toolkit")
    add_network_option(action)
    action.add_argument("--all", action=Switch, help="print all names, not the first 10 of each kind")
    action.add_argument("--encoder", help="resnest50_fast_2s1x64d, ...: in place of what the shapes suggest")
    action.add_argument(
        "--output_stride", type=int, choices=(8, 16, 32), help="default: 8; of smp's decoders, smp's own"
    )
    action.add_argument(
        "--dilation_convention", choices=("authors", "timm", "mmseg"), help="default: that of the toolkit"
    )
    action.add_argument(
        "--allow_unmatched",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="let names pass that fit a shell pattern: missing ones get initial values, unexpected ones are left "
        "out, of another shape both; quote it: 'aux_head.*'",
    )


def _add_recalibration(action: argparse.ArgumentParser) -> None:
    action.add_argument("file", metavar="FILE", type=Path, help="checkpoint of a whole network")
    action.add_argument("--batches", metavar="N", type=whole_number(1), default=200, help="default: 200")
    action.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    add_data_options(action)


def _add_calibration(action: argparse.ArgumentParser) -> None:
    action.add_argument("file", metavar="FILE", type=Path, help="checkpoint of a whole network")
    action.add_argument("--protocol", default="whole", metavar="NAME", help="whole (default), ms-flip, ...")
    action.add_argument("--split", choices=("val", "test"), default="val", help="default: val")
    action.add_argument("--limit", metavar="N", type=whole_number(1), help="images at most; default: all")
    action.add_argument("--device", metavar="NAME", help="cpu, cuda:1, ...; default: the GPU if there is one")
    add_data_options(action)
