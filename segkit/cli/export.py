"""`segkit export`: write a checkpoint as a model file, safetensors with a card that says all about the weights."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.parser import Parser, Switch
from segkit.cli.weights.command import check_output
from segkit.cli.words import say
from segkit.text import aligned, listed, percent

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.models.checkpoint import Checkpoint

_DESCRIPTION = """\
Write a checkpoint of `segkit fit`, or of any toolkit that segkit reads, as one safetensors file: the weights without
the optimiser's state, and a card in JSON with architecture, dilation convention, class names, palette, label table,
normalisation, recommended protocol, scores and versions. segkit.load(FILE) and --ckpt_path FILE read it.

Scores come from the result files given, and else from those `segkit test` and `segkit validate` wrote into the folder
of the checkpoint's run with these very weights."""


def main(args: Sequence[str]) -> int:
    """Run `segkit export`; see `--help`."""
    options = _parser().parse_args(args)
    output: Path = options.output or options.checkpoint.with_suffix(".safetensors")
    check_output(output, options.overwrite)
    from segkit.evaluation.read_results import score_of
    from segkit.evaluation.results import versions
    from segkit.models.checkpoint import weights_sha256
    from segkit.models.export import sourced, without_aux
    from segkit.models.weight_files import write_model_file
    from segkit.models.weights import read_checkpoint

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
    write_model_file(output, checkpoint)
    parameters = sum(p.numel() for p in network.parameters())
    say(summary(output, checkpoint, parameters))
    return 0


def _results_of_run(checkpoint: Path, sha256: str) -> list[Path]:
    from segkit.evaluation.read_results import results_of_run

    own, others = results_of_run(checkpoint, sha256)
    for path in others:
        say(f"{path}: left out: made with other weights than {checkpoint.name}'s", to=sys.stderr)
    return own


def summary(path: Path, checkpoint: "Checkpoint", parameters: int) -> str:
    """What is in the file, for a reader: one aligned line a thing."""
    arguments = checkpoint.network["init_args"]
    network = f"{checkpoint.network['class_path'].rsplit('.', 1)[-1]}, {arguments['encoder']}"
    convention = arguments["dilation_convention"] if "resnest" in arguments["encoder"] else "timm"  # the only one there
    network += f", output stride {arguments['output_stride']}, dilation convention {convention}"
    network += f", {'with' if arguments.get('aux') else 'no'} auxiliary head"
    names = _class_names(checkpoint)
    classes = "no names" if names is None else listed(names, 8)
    mean, std = (" ".join(f"{v:g}" for v in checkpoint.normalization[key]) for key in ("mean", "std"))
    protocol = checkpoint.card["protocol"]
    scores = [_score_line(score) for score in checkpoint.card["scores"]]
    rows = [
        ("network", network),
        ("parameters", f"{parameters / 1e6:.2f} M in {len(checkpoint.state_dict)} tensors"),
        ("classes", f"{arguments['num_classes']}: {classes}"),
        ("normalisation", f"mean {mean}, std {std}"),
        ("protocol", "none recommended (--protocol NAME)" if protocol is None else protocol["name"]),
        *(("score", line) for line in scores or ["none (--result FILE)"]),
        ("source", f"{checkpoint.card['source']['file']}, SHA-256 {checkpoint.card['source']['sha256'][:16]}..."),
    ]
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB\n{aligned(rows, left=(0, 1))}"


def _score_line(score: Mapping[str, Any]) -> str:
    dataset = score.get("dataset", {})
    data = " ".join(str(dataset[key]) for key in ("name", "split") if key in dataset)
    images = f"{score.get('num_images', '?')} images{' (partial)' if score.get('partial') else ''}"
    return f"mIoU {percent(score.get('mIoU'))} ({score.get('protocol', '?')}; {data}; {images})"


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
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: beside CHECKPOINT, ending in .safetensors"
    )
    parser.add_argument(
        "--result", nargs="+", type=Path, metavar="FILE", help="result.json of this checkpoint, for the card's scores"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="recommended for tests; default: that of the newest complete result"
    )
    parser.add_argument(
        "--aux",
        action=Switch,
        default=True,
        help="the auxiliary head, which only training needs",
    )
    parser.add_argument("--overwrite", action=Switch, help="write over FILE if it exists")
    return parser
