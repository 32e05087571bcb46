"""`segkit explain`: what a network attends to, as figures and numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

from segkit.bars import Bar
from segkit.cli.parser import Parser, add_network_option
from segkit.cli.words import say, say_above_bar
from segkit.errors import InputError, about, did_you_mean
from segkit.files import check_writable
from segkit.inference.inputs import find_images
from segkit.paths import check_regular, is_exported
from segkit.text import counted

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.inference.segmenter import Segmenter

_DESCRIPTION = """\
Show what a network attends to in images, by the protocol `whole`.

For each image, written to DIR (folders inside a given folder are kept):
  NAME_attention.png  attention of each block: its channels sorted, mean and deviation
  NAME_shares.png     where the last block of each stage prefers which split
  NAME_gradcam.png    where the features of --stages speak for --classes (Seg-Grad-CAM)
  NAME_against.png    where the labels of --against differ
For all of them:
  attention.png       which split each class prefers in each block; attention.json has the numbers
  against.json        how many pixels differ, and the most frequent pairs of classes
  receptive_field.png with --receptive_field: how far the encoder really looks; .json has the numbers

Attention is that of ResNeSt, of squeeze and excitation (SENet) and of selective kernels (SKNet). It weights channels,
not pixels: the share of a split at a pixel is its part of the weighted sum there, and that of a class the mean over
the pixels that are predicted as it.

Exit code: 0 all done, 1 some images could not be read (the others are done), 2 nothing could be done."""


def main(args: list[str] | None = None) -> int:
    """Run `segkit explain`; see `--help` for the files that it writes and its exit codes."""
    options = _parser().parse_args(args)
    failures: list[Path] = []

    def failed(path: Path, error: Exception) -> None:
        failures.append(path)
        _say("error", str(about(path, error)))

    images = find_images(options.images, options.output, failed, lambda text: _say("note", text))
    check_writable(options.output)
    segmenter = _load(options.model, options.device)
    classes = [_class_id(segmenter, name) for name in options.classes or ()]
    against = None if options.against is None else _load(options.against, options.device)
    from segkit.explain.explanation import Explanation

    explanation = Explanation(segmenter, classes, options.stages, options.receptive_field, against)
    done = 0
    with Bar(total=len(images), unit="image", disable=len(images) == 1) as bar:
        for path, name in images:
            try:
                check_regular(path)  # reading the header of a pipe would block forever
                explanation.add(path, options.output / name, len(images))
                done += 1
            except (InputError, OSError) as error:
                failed(path, error)
            bar.update()
    if done:
        explanation.finish(options.output, str(options.model))
    for note in sorted(explanation.notes):
        _say("note", note)
    say(f"{counted(done, 'image')}{f', {len(failures)} failed' if failures else ''}: {options.output}")
    return (1 if done else 2) if failures else 0


def _load(path: Path, device: str | None) -> "Segmenter":
    if is_exported(path):
        raise InputError(f"{path}: nobody can look into an exported model; give the checkpoint that it was made of")
    from segkit.inference.segmenter import load

    segmenter = load(path, device, precision="exact")
    segmenter.network.requires_grad_(False)
    return segmenter


def _class_id(segmenter: "Segmenter", name: str) -> int:
    names = segmenter.class_names
    if name in names:
        return names.index(name)
    raise InputError(f"--classes: no class {name!r}; {did_you_mean(name, names)}the model has {', '.join(names)}")


def _parser() -> Parser:
    parser = Parser("segkit explain", description=_DESCRIPTION)
    parser.add_argument("model", type=Path, metavar="MODEL", help="of `segkit fit` or any toolkit, not an export")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    add_network_option(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="created if it is absent")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:1, ...; default: the GPU if there is one")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="of Grad-CAM; default: the three largest of each image"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        type=int,
        choices=(1, 2, 3, 4),
        default=[4],
        help="of the encoder, for Grad-CAM; default: 4, the last; earlier ones take as much memory as training",
    )
    parser.add_argument("--against", type=Path, metavar="OTHER", help="a second model, whose labels are compared")
    parser.add_argument(
        "--receptive_field",
        nargs="*",
        choices=("authors", "timm", "mmseg"),
        help="measure the encoder's effective receptive field; of a ResNeSt also as other conventions dilate it",
    )
    return parser


def _say(kind: str, text: str) -> None:
    say_above_bar(f"segkit explain: {kind}: {' '.join(text.split())}")
