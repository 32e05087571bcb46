"""`segkit weights inspect | convert`: what a weight file of any toolkit holds, and the same as a file of segkit."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit import __version__
from segkit.cli.parser import Parser
from segkit.errors import InputError
from segkit.files import check_new_file, write_bytes

if TYPE_CHECKING:  # they need PyTorch, which takes seconds to import, and `--help` does not
    from segkit.models.toolkits.foreign import Choices, Inspection
    from segkit.models.toolkits.keys import KeyReport

_DESCRIPTION = """\
Look into a weight file of any toolkit, or write it as segkit's own.

Files (.pth, .pt, .ckpt, .safetensors; nothing in them is run):
  encoders   ResNeSt of the authors' release, PyTorch-Encoding, timm and mmsegmentation; ResNet of torchvision and timm
  networks   segkit; PyTorch-Encoding FCN and DeepLabV3; smp DeepLabV3 over tu-resnest* and tu-resnet*;
             torchvision fcn_resnet* and deeplabv3_resnet*; mmsegmentation FCNHead, ASPPHead over ResNeSt, ResNet(V1c)

The toolkit, the network and the encoder are found by the names and shapes of the parameters. A parameter that is
missing, unexpected or of another shape is an error (exit code 2), unless --allow_unmatched lets it pass."""

_NO_DILATION = "none implied: the conventions agree at stride 32, and all take these weights at 8 and 16"
_NO_CHOICE = "no choice: segkit dilates a ResNet in one way, torchvision's and timm's"
_SHOWN = 10  # names of a kind, without --all


def main(args: Sequence[str]) -> int:
    """Run `segkit weights`.

    Args:
        args: what follows `segkit weights` on the command line.

    Returns:
        0.

    Raises:
        InputError: the file cannot be read or recognised, or something in it does not match.
    """
    options = _parser().parse_args(list(args))
    if options.action == "convert":
        _check_output(options.output, options.force)
    from segkit.models.weights import inspect

    choices = _choices(options)
    inspection = inspect(options.file, choices)
    print(_report(options.file, inspection, options.all))
    inspection.keys.require_match(str(options.file), choices.allow_unmatched)
    if options.action == "convert":
        _write(options, inspection, choices)
        print(f"\nwritten       {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _write(options: argparse.Namespace, inspection: "Inspection", choices: "Choices") -> None:
    from safetensors.torch import save

    from segkit.evaluation.results import versions
    from segkit.models.hub import file_sha256
    from segkit.models.model_file import write_model_file

    if inspection.is_network:
        checkpoint = inspection.checkpoint(str(options.file), choices.allow_unmatched)
        source = {**(checkpoint.card.get("source") or {}), "sha256": file_sha256(options.file)}
        card = {**checkpoint.card, "segkit": __version__, "versions": versions(), "source": source}
        write_model_file(options.output, replace(checkpoint, card=card))
        return
    lacking = [*inspection.keys.missing, *inspection.keys.clashing]
    if lacking:
        raise InputError(f"{options.file}: an encoder without {lacking[0]} could not be loaded again; nothing written")
    write_bytes(options.output, save({name: value.clone() for name, value in inspection.weights.items()}))


def _check_output(output: Path, force: bool) -> None:
    """Fail before seconds are spent on reading."""
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: what is written is safetensors; give --output a name that ends in .safetensors")
    check_new_file(output, force)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("segkit weights", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{inspect,convert}")
    look = actions.add_parser("inspect", help="say what a file holds, and what matches")
    convert = actions.add_parser("convert", help="write it as a safetensors file of segkit")
    for action in (look, convert):
        action.add_argument("file", type=Path, help="weight file of any toolkit")
        action.add_argument("--all", action="store_true", help=f"print all names, not the first {_SHOWN} of each kind")
        action.add_argument("--encoder", help="resnest50_fast_2s1x64d, ...: in place of what the shapes suggest")
        action.add_argument("--output_stride", type=int, default=8, choices=(8, 16, 32), help="default: 8")
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
    convert.add_argument("-o", "--output", type=Path, required=True, help="the file to write, model.safetensors")
    convert.add_argument("--force", action="store_true", help="write over the output if it exists")
    return parser


def _choices(options: argparse.Namespace) -> "Choices":
    from segkit.models.toolkits.foreign import Choices

    return Choices(
        encoder=options.encoder,
        output_stride=options.output_stride,
        dilation_convention=options.dilation_convention,
        allow_unmatched=tuple(options.allow_unmatched),
    )


def _report(path: Path, inspection: "Inspection", all_names: bool) -> str:
    rows = [("file", f"{path} ({path.stat().st_size / 1e6:.1f} MB)"), ("toolkit", inspection.toolkit)]
    rows += _network_rows(inspection) if inspection.is_network else _encoder_rows(inspection.config)
    rows += [("note", note) for note in inspection.notes]
    rows += _card_rows(inspection.card)
    rows += _key_rows(inspection.keys, all_names)
    return "\n".join(f"{name:<13} {value}".rstrip() for name, value in rows)


def _encoder_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("encoder", _encoder(config["name"], config["overrides"])),
        ("dilation", _NO_DILATION if "resnest" in config["name"] else _NO_CHOICE),
    ]


def _network_rows(inspection: "Inspection") -> list[tuple[str, str]]:
    from segkit.models.toolkits.formats import TOOLKITS

    arguments = inspection.config["init_args"]
    resnest, own = "resnest" in arguments["encoder"], inspection.toolkit.startswith("segkit")
    implied = None if own else TOOLKITS[inspection.toolkit].convention
    whose = "" if own else f" (implied: {inspection.toolkit} dilates so)"
    if not own and implied != arguments["dilation_convention"]:
        whose = f" (given; {inspection.toolkit} implies {implied})"
    space = inspection.label_space
    names = "" if space is None else f": {_some(space['class_names'], 5)}"
    return [
        ("network", inspection.config["class_path"].rsplit(".", 1)[1] + (" + auxiliary head" * arguments["aux"])),
        ("encoder", _encoder(arguments["encoder"], arguments["encoder_args"])),
        ("classes", f"{arguments['num_classes']}{names}"),
        ("dilation", f"{arguments['dilation_convention']} convention{whose}" if resnest else _NO_CHOICE),
        ("output stride", f"{arguments['output_stride']}{'' if own else ' (not in the file: --output_stride)'}"),
        ("align_corners", str(arguments["align_corners"])),
        ("normalisation", ", ".join(f"{name} {values}" for name, values in inspection.normalization.items())),
    ]


def _encoder(name: str, overrides: dict[str, Any] | None) -> str:
    return name + "".join(f", {key} {value}" for key, value in (overrides or {}).items())


def _card_rows(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The main facts of a model file's card; of another toolkit's file there is none yet."""
    rows = []
    protocol = card.get("protocol")
    if protocol:
        rows.append(("protocol", str(protocol.get("name", protocol))))
    for score in card.get("scores") or []:
        rows.append(("score", ", ".join(f"{key} {value}" for key, value in score.items() if not _nested(value))))
    if "segkit" in card:
        rows.append(("source", ", ".join(f"{k} {v}" for k, v in (card.get("source") or {}).items() if not _nested(v))))
        rows.append(("written by", f"segkit {card['segkit']}"))
    return rows


def _nested(value: object) -> bool:
    return isinstance(value, (dict, list))


def _key_rows(keys: "KeyReport", all_names: bool) -> list[tuple[str, str]]:
    shown = None if all_names else _SHOWN
    clashing = [f"{name}: {theirs} in the file, {ours} needed" for name, (theirs, ours) in keys.clashing.items()]
    rows = [("", ""), ("matched", f"{len(keys.same) + len(keys.renamed):5}")]
    rows += _listed("renamed", len(keys.renamed), _prefixes(keys.renamed), None, " of these")
    if keys.dropped:
        rows += _listed("dropped", len(keys.dropped), keys.dropped, shown, " (classifier of ImageNet)")
    if keys.filled:
        rows += _listed("filled", len(keys.filled), [], shown, " (counters of batch norms, which no output needs)")
    rows += _listed("missing", len(keys.missing), keys.missing, shown)
    rows += _listed("unexpected", len(keys.unexpected), keys.unexpected, shown)
    return rows + _listed("clashing", len(clashing), clashing, shown)


def _listed(kind: str, count: int, names: Iterable[str], shown: int | None, remark: str = "") -> list[tuple[str, str]]:
    names = list(names)
    rows = [(kind, f"{count:5}{remark if count else ''}")] + [("", f"      {name}") for name in names[:shown]]
    left = len(names) - len(names[:shown])
    return [*rows, ("", f"      and {left} more (--all)")] if left else rows


def _prefixes(renamed: dict[str, str]) -> list[str]:
    """`old -> new (count)`, without the ends of names that both share."""
    pairs: Counter[tuple[str, str]] = Counter()
    for old, new in renamed.items():
        olds, news = old.split("."), new.split(".")
        while len(olds) > 1 and len(news) > 1 and olds[-1] == news[-1]:
            olds.pop(), news.pop()
        pairs[".".join(olds), ".".join(news)] += 1
    width = max((len(old) for old, _ in pairs), default=0)
    return [f"{old:<{width}} -> {new} ({count})" for (old, new), count in pairs.items()]


def _some(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
