"""The toolkits' names of parameters, and the facts that their files omit: dilation and upsampling.

The names come from the toolkits' own code: PyTorch-Encoding (encoding/models/sseg/{deeplab,fcn}.py, encoding/models/
backbone/resnet.py), segmentation-models-pytorch 0.6.0 (base/model.py), torchvision 0.28
(models/segmentation/), mmsegmentation 1.2.2 (models/backbones/resnest.py, models/decode_heads/).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from segkit.errors import InputError
from segkit.models.resnest import DilationConvention

Rules: TypeAlias = tuple[tuple[str, str], ...]  # a prefix's pattern, and its replacement

# Prefixes that wrappers put before every name of a file.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")


@dataclass(frozen=True)
class Toolkit:
    """Facts that the weights of a toolkit imply without stating them.

    Attributes:
        convention: How it dilates a ResNeSt; None for a lone encoder, whose file implies no dilation.
        align_corners: How it upsamples logits.
        marks: Prefixes of names by which its checkpoints are recognised; each must occur.
    """

    convention: DilationConvention | None
    align_corners: bool
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """The names of one network of one toolkit.

    Attributes:
        toolkit: The toolkit's name in `TOOLKITS`.
        network: The network's class; None for a lone encoder.
        marks: Patterns of name prefixes; each must occur.
        rules: Rules that produce segkit's names; the first match applies.
    """

    toolkit: str
    network: str | None
    marks: tuple[str, ...]
    rules: Rules


# fmt: off
TOOLKITS: dict[str, Toolkit] = {
    #                            convention  align_corners
    "PyTorch-Encoding":  Toolkit("authors",  True,  ("pretrained.",)),
    "mmsegmentation":    Toolkit("mmseg",    False, ("backbone.", "decode_head.")),
    "torchvision":       Toolkit("timm",     False, ("backbone.", "classifier.")),
    "smp":               Toolkit("timm",     True,  ("encoder.", "decoder.", "segmentation_head.")),
    "encoder file":      Toolkit(None,       True,  ("layer1.0.",)),
}
# fmt: on

_ENCODER = (
    (r"stem\.7\.", "encoder.bn1."),  # mmseg: the stem is one list, its last norm included
    (r"stem\.", "encoder.conv1."),
    (r"(?=(conv1|bn1|layer[1-4]|fc)\.)", "encoder."),
)
_ENCODING_ENCODER = ((r"pretrained\.", "encoder."), (r"auxlayer\.conv5\.", "aux_head."))
_TORCHVISION_ENCODER = ((r"backbone\.", "encoder."), (r"aux_classifier\.", "aux_head."))
_MMSEG_ENCODER = (
    (r"backbone\.stem\.7\.", "encoder.bn1."),
    (r"backbone\.stem\.", "encoder.conv1."),
    (r"backbone\.", "encoder."),
    (r"auxiliary_head\.convs\.0\.conv\.", "aux_head.convs.0.0."),
    (r"auxiliary_head\.convs\.0\.bn\.", "aux_head.convs.0.1."),
    (r"auxiliary_head\.conv_seg\.", "aux_head.classify.1."),
    (r"decode_head\.conv_seg\.", "head.classify.1."),
)

# The last convolution of each network's head, under segkit's names; its output channels are the classes.
CLASSIFIERS = {
    "FCN": "head.4.weight",
    "DeepLabV3": "head.block.4.weight",
    "MMSegFCN": "head.classify.1.weight",
    "MMSegDeepLabV3": "head.classify.1.weight",
    "EncoderDecoder": "head.segmentation_head.0.weight",
}

FORMATS: tuple[Format, ...] = (
    Format(
        "PyTorch-Encoding",
        "DeepLabV3",
        (r"head\.aspp\.b0\.",),
        (
            *_ENCODING_ENCODER,
            (r"head\.aspp\.b([0-3])\.", r"head.aspp.convs.\1."),
            (r"head\.aspp\.b4\.gap\.", "head.aspp.convs.4."),
            (r"head\.aspp\.project\.", "head.aspp.project."),
            (r"head\.block\.", "head.block."),
        ),
    ),
    Format("PyTorch-Encoding", "FCN", (r"head\.conv5\.0\.",), (*_ENCODING_ENCODER, (r"head\.conv5\.", "head."))),
    Format(
        "mmsegmentation",
        "MMSegDeepLabV3",
        (r"decode_head\.image_pool\.", r"decode_head\.aspp_modules\.1\.conv\."),
        (
            *_MMSEG_ENCODER,
            (r"decode_head\.image_pool\.1\.conv\.", "head.pool.1."),
            (r"decode_head\.image_pool\.1\.bn\.", "head.pool.2."),
            (r"decode_head\.aspp_modules\.(\d)\.conv\.", r"head.branches.\1.0."),
            (r"decode_head\.aspp_modules\.(\d)\.bn\.", r"head.branches.\1.1."),
            (r"decode_head\.bottleneck\.conv\.", "head.project.0."),
            (r"decode_head\.bottleneck\.bn\.", "head.project.1."),
        ),
    ),
    Format(
        "mmsegmentation",
        "MMSegFCN",
        (r"decode_head\.convs\.0\.conv\.", r"decode_head\.conv_cat\."),
        (
            *_MMSEG_ENCODER,
            (r"decode_head\.convs\.(\d)\.conv\.", r"head.convs.\1.0."),
            (r"decode_head\.convs\.(\d)\.bn\.", r"head.convs.\1.1."),
            (r"decode_head\.conv_cat\.conv\.", "head.join.0."),
            (r"decode_head\.conv_cat\.bn\.", "head.join.1."),
        ),
    ),
    Format(
        "torchvision",
        "DeepLabV3",
        (r"classifier\.0\.convs\.",),
        (
            *_TORCHVISION_ENCODER,
            (r"classifier\.0\.", "head.aspp."),
            (r"classifier\.1\.", "head.block.0."),
            (r"classifier\.2\.", "head.block.1."),
            (r"classifier\.4\.", "head.block.4."),
        ),
    ),
    Format("torchvision", "FCN", (r"classifier\.0\.weight",), (*_TORCHVISION_ENCODER, (r"classifier\.", "head."))),
    Format(
        "smp",
        "EncoderDecoder",
        (r"decoder\.",),
        (
            (r"encoder\.model\.", "encoder."),
            (r"encoder\.", "encoder."),  # smp's own encoders; tu- up to smp 0.4
            (r"decoder\.0\.", "head.decoder.aspp."),  # DeepLabV3's numbers: up to smp 0.4
            (r"decoder\.1\.", "head.decoder.conv."),
            (r"decoder\.2\.", "head.decoder.bn."),
            (r"(?=(decoder|segmentation_head)\.)", "head."),
        ),
    ),
    Format("encoder file", None, (r"(stem\.|conv1\.)", r"layer4\."), _ENCODER),
)


def find_format(names: Iterable[str]) -> Format:
    """Find the toolkit and the network to which the parameters' names belong.

    Raises:
        InputError: The toolkit or its head is unknown; the message says what was found.
    """
    names = list(names)
    for toolkit, facts in TOOLKITS.items():
        if not all(any(name.startswith(mark) for name in names) for mark in facts.marks):
            continue
        for form in FORMATS:
            if form.toolkit == toolkit and all(any(re.match(m, name) for name in names) for m in form.marks):
                return form
        raise InputError(_other_head(toolkit, names))
    raise InputError(
        "not from a toolkit that segkit knows (segkit, PyTorch-Encoding, smp, torchvision, mmsegmentation), and not a "
        f"ResNeSt or ResNet encoder: its {len(names)} parameters are {', '.join(names[:3])}, ..."
    )


def rename(rules: Rules, names: Iterable[str]) -> dict[str, str]:
    """Map names by the first rule that matches each; names that no rule covers are left out."""
    renamed = {}
    for name in names:
        for pattern, replacement in rules:
            new, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                renamed[name] = new
                break
    return renamed


def wrapper_prefix(names: Iterable[str]) -> str:
    """The prefix that wrappers (DistributedDataParallel, torch.compile, Lightning modules) add to every name, or ""."""
    names, prefix = list(names), ""
    while True:
        found = [w for w in _WRAPPERS if names and all(name.startswith(prefix + w) for name in names)]
        if not found:
            return prefix
        prefix += found[0]


def _other_head(toolkit: str, names: list[str]) -> str:
    if toolkit == "encoder file":
        return f"an encoder, but neither a ResNeSt nor a ResNet: its parameters are {', '.join(names[:3])}, ..."
    encoder = ("encoder.", "backbone.", "pretrained.", "auxiliary_head.", "aux_classifier.", "auxlayer.")
    head = [name for name in names if not name.startswith(encoder)]
    return (
        f"a checkpoint of {toolkit} with a head that segkit does not have ({', '.join(head[:2])}, ...); "
        f"it reads {' and '.join(f.network or '' for f in FORMATS if f.toolkit == toolkit)}"
    )
