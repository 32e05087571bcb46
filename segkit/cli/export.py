"""`segkit export`: write a checkpoint as a model file, or in the formats that networks are deployed in."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.parser import (
    Parser,
    Switch,
    add_data_options,
    add_network_option,
    number,
    option_names,
    split_options,
    whole_number,
)
from segkit.cli.words import say
from segkit.errors import InputError
from segkit.files import check_new_file
from segkit.paths import EXPORTED_SUFFIXES, is_exported

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.models.checkpoint import Checkpoint

_DESCRIPTION = """\
Write a checkpoint of `segkit fit`, or of any toolkit that segkit reads, as one file; its suffix chooses the format:
  .safetensors  the weights without the optimiser's state; segkit.load(FILE) and --ckpt_path FILE read it
  .onnx         ONNX, for ONNX Runtime and others (segkit-torch[onnx])
  .xml          OpenVINO, with FILE.bin beside it (segkit-torch[openvino])
  .pt2          torch.export's own format, for PyTorch without segkit

Each holds a card in JSON with architecture, dilation convention, class names, palette, label table, normalisation,
recommended protocol, scores and versions. The last three hold a function of the stored image, (B, C, H, W) of any
size with values as in the image file, as normalisation is inside; batch norms are folded. segkit.load(FILE), `segkit
infer` and `segkit benchmark` run them, too. See docs/deployment.md.

Such a file is proven before it gets its name: its labels and logits are compared with PyTorch's at three odd sizes, its
time and memory measured, and with --data its mIoU on the test split, with a paired interval over images. The report is
printed and lies in FILE.parity.json. A file that differs by more than its precision explains is kept as
NAME.unproven.SUFFIX, and the exit code is 1. int8 needs --data: it is calibrated on training images, and layers are
kept in float until at most --max_drop is lost on these; the report then has the loss on the test images.

Scores come from the result files given, and else from those `segkit test` and `segkit validate` wrote into the folder
of the checkpoint's run with these very weights."""

# Options that a .safetensors file, which holds the weights as they are, has no use for; besides those of the data.
_DEPLOYED = ("--precision", "--outputs", "--input", "--license", "--max_drop", "--limit", "--calibration_images")


def main(args: Sequence[str]) -> int:
    """Run `segkit export`; see `--help`.

    Returns:
        0: the file is written. 1: it differs from PyTorch by more than its limit, and has another name.
    """
    own, of_data = split_options(args)
    options = _parser().parse_args(own)
    output: Path = options.output or options.checkpoint.with_suffix(".safetensors")
    _check_suffix(output, args)
    check_new_file(output, options.overwrite)
    from segkit.evaluation.read_results import score_of
    from segkit.evaluation.results import versions
    from segkit.models.checkpoint import weights_sha256
    from segkit.models.export.model_file import sourced, without_aux
    from segkit.models.toolkits.report import report
    from segkit.models.weight_files import write_model_file
    from segkit.models.weights import inspect, read_checkpoint

    checkpoint = read_checkpoint(options.checkpoint)
    given = options.result or _results_of_run(options.checkpoint, weights_sha256(checkpoint.state_dict))
    checkpoint = checkpoint if options.aux else without_aux(checkpoint)
    network = checkpoint.build_network()  # what cannot be built is not written
    scores = [score_of(path, _class_names(checkpoint)) for path in given]
    card = {
        "protocol": _protocol(options.protocol, checkpoint, scores),
        "scores": _merged(checkpoint.card.get("scores") or [], [score["card"] for score in scores]),
    }
    parts = {**checkpoint.hyper_parameters, "network": network.config}  # with the defaults, which may change one day
    checkpoint = replace(checkpoint, hyper_parameters=parts, card={**checkpoint.card, **card})
    checkpoint = sourced(checkpoint, options.checkpoint, versions())
    if is_exported(output):
        from segkit.cli.deployment import deploy_and_prove  # Lightning and the data, which the weights alone need not

        return deploy_and_prove(output, checkpoint, network, options, of_data)
    write_model_file(output, checkpoint)
    say(report(output, inspect(output)))
    return 0


def _check_suffix(output: Path, args: Sequence[str]) -> None:
    """Refuse an unknown format, and options that have no effect on a model file."""
    allowed = (".safetensors", *EXPORTED_SUFFIXES)
    if output.suffix.lower() not in allowed:
        raise InputError(f"{output}: its suffix {output.suffix!r} names no format; choose {', '.join(allowed)}")
    unused = [name for name in option_names(args) if name.startswith((*_DEPLOYED, "--data"))]
    if unused and not is_exported(output):
        raise InputError(
            f"{unused[0]} has no effect on a {output.suffix} file, which holds the weights as they are; leave it "
            f"out, or give -o a file that ends in {', '.join(EXPORTED_SUFFIXES)}"
        )


def _results_of_run(checkpoint: Path, sha256: str) -> list[Path]:
    from segkit.evaluation.read_results import results_of_run

    own, others = results_of_run(checkpoint, sha256)
    for path in others:
        say(f"{path}: left out: made with other weights than {checkpoint.name}'s", to=sys.stderr)
    return own


def _protocol(name: str | None, checkpoint: "Checkpoint", scores: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The recommended protocol: as named, or that of the newest complete result, or what the card had."""
    if name is not None:
        from segkit.inference import protocols

        return protocols.get(name).to_dict()
    complete = [score for score in scores if not score["card"]["partial"]]
    if complete:
        return dict(max(complete, key=lambda score: str(score["card"]["date"]))["protocol"])
    found: dict[str, Any] | None = checkpoint.card.get("protocol")
    return found


def _merged(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    return [*old, *(score for score in new if score not in old)]


def _class_names(checkpoint: "Checkpoint") -> list[str] | None:
    return None if checkpoint.label_space is None else list(checkpoint.label_space["class_names"])


def _parser() -> Parser:
    parser = Parser("segkit export", description=_DESCRIPTION)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of segkit, or of another toolkit")
    add_network_option(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: beside CHECKPOINT, ending in .safetensors"
    )
    parser.add_argument(
        "--result", nargs="+", type=Path, metavar="FILE", help="result.json of this checkpoint, for the card's scores"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="recommended for tests; default: that of the newest complete result"
    )
    parser.add_argument("--aux", action=Switch, default=True, help="the auxiliary head, which only training needs")
    deployed = parser.add_argument_group("of .onnx, .xml and .pt2")
    deployed.add_argument("--precision", choices=("fp32", "fp16", "bf16", "int8"), default="fp32", help="default: fp32")
    deployed.add_argument(
        "--outputs",
        choices=("both", "labels", "logits"),
        default="both",
        help="labels: uint8, at the size of the image; logits: float32, at the network's stride, which protocols of "
        "several views need; default: both",
    )
    deployed.add_argument(
        "--input",
        choices=("float32", "uint8"),
        default="float32",
        help="the type of the image; uint8 cannot be shown rescaled images (protocols of several scales)",
    )
    deployed.add_argument("--license", metavar="TEXT", help="of the weights; kept in the card")
    deployed.add_argument(
        "--max_drop",
        type=number(lambda points: 0 <= points <= 100, "in 0..100"),
        default=0.5,
        metavar="POINTS",
        help="of mIoU that may be lost on --data; default: 0.5",
    )
    deployed.add_argument("--limit", type=whole_number(2), help="images of the test split at most; default: all")
    deployed.add_argument(
        "--calibration_images",
        type=whole_number(1),
        default=100,
        help="of the training split with their masks, for int8; default: 100",
    )
    add_data_options(parser)
    parser.add_argument("--overwrite", action=Switch, help="write over FILE if it exists")
    return parser
